"""The task of a model, as files state it: ``problem_type``, in transformers' words."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlx_peft.core.errors import UserError, shown
from mlx_peft.tasks.registry import TASKS, USUAL
from mlx_peft.tasks.task import Task

KEY = "problem_type"


def written(task: Task) -> dict[str, str]:
    """The entry of a configuration; none of the usual task, which is what its absence means to everybody."""
    return {} if task == USUAL else {KEY: task.name}


def known(name: Any) -> str:
    """The name itself. Raises ValueError where no task has it."""
    if not isinstance(name, str) or name not in TASKS:
        raise ValueError(f"{shown(name)} is not supported (known: {', '.join(TASKS)})")
    return name


def task_of(config: Mapping[str, Any], path: Path) -> Task:
    """The task that a configuration states. Raises UserError where it is none that is supported."""
    found = config.get(KEY)
    if found is None:
        return USUAL
    try:
        return TASKS[known(found)]
    except ValueError as error:
        raise UserError(f"{path}: {KEY}: {error}") from None


def must_answer(rows: int, task: Task, where: Path) -> None:
    """Raises UserError where a head has fewer rows than the task needs: it says nothing.

    transformers takes a head of one row, of a model that states no problem, for one of a regression.
    """
    if rows < task.fewest:
        raise UserError(
            f"{where}: the head has {rows} row{'s' * (rows != 1)}, and an image {task.image} ({KEY}): there should be "
            f"{task.fewest} rows at least. Supported are {' and '.join(TASKS)}"
        )

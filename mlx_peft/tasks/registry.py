"""The tasks by the names that files have for them, and what is known of metrics whose task nobody states."""

from __future__ import annotations

from collections.abc import Mapping

from mlx_peft.tasks.multi_label import MULTI_LABEL
from mlx_peft.tasks.single_label import SINGLE_LABEL
from mlx_peft.tasks.task import Task

TASKS: dict[str, Task] = {task.name: task for task in (SINGLE_LABEL, MULTI_LABEL)}
"""The registry: a task is one entry here, and a loss in each backend's ``losses.LOSSES``."""

USUAL = SINGLE_LABEL
"""The task of a file that does not name one."""


def classification(multi_label: bool) -> Task:
    """The task by what a user of the library says of it."""
    return MULTI_LABEL if multi_label else SINGLE_LABEL


def leading_metrics() -> tuple[str, ...]:
    """The leading metric of each task, in the registry's order."""
    return tuple(dict.fromkeys(name for task in TASKS.values() for name in task.columns[:1]))


def leading(metrics: Mapping[str, float]) -> str:
    """The leading metric in a result, which does not state its task; the loss where there is none of them."""
    return next((name for name in leading_metrics() if name in metrics), "loss")


def figures() -> dict[str, str]:
    """What the metrics of all tasks that are fractions are called."""
    return {name: called for task in TASKS.values() for name, called in task.figures.items()}

"""VTAB-1k's two means: over the three groups, and over the 19 tasks (Zhai et al. 2020, section 2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from mlx_peft.core.errors import UserError
from mlx_peft.data.sets.vtab import GROUPS, PREFIX, TASKS
from mlx_peft.report.boards import Board
from mlx_peft.report.format import percent

FACTS = ("model", "backend")
"""What the runs of a mean have in common besides their row."""


@dataclass(frozen=True)
class Means:
    """Means of top-1, fractions: of each group's tasks, of the three groups, of the 19 tasks; and the fewest seeds."""

    groups: Mapping[str, float]
    of_groups: float
    of_tasks: float
    seeds: int


def means(scores: Mapping[str, Sequence[float]]) -> Means:
    """The means of all tasks' scores, of which each may have several (its seeds, averaged first).

    The mean of the groups weighs a structured task by 1/24, a specialized one by 1/12. Raises UserError where a task is
    missing: a mean over some of them compares with nobody's.
    """
    if missing := [task for task in TASKS if not scores.get(task)]:
        raise UserError(f"{len(TASKS) - len(missing)} of VTAB-1k's {len(TASKS)} tasks; missing: {', '.join(missing)}")
    tasks = {task: fmean(scores[task]) for task in TASKS}
    groups = {group: fmean(tasks[task] for task in TASKS if TASKS[task].group == group) for group in GROUPS}
    return Means(groups, fmean(groups.values()), fmean(tasks.values()), min(len(scores[task]) for task in TASKS))


def by_configuration(board: Board) -> dict[str, dict[str, list[float]]]:
    """The test's top-1 of each row's tasks, of what was tested on VTAB-1k; another model or backend is another row."""
    scores: dict[str, dict[str, list[float]]] = {}
    for (row, at), group in board.cells.items():
        dataset, there = str(group.runs[0].value("dataset")), board.columns[at]
        if not dataset.startswith(PREFIX) or (there.split, there.measure) != ("test", "top1"):
            continue
        name = ", ".join([row, *(str(value) for fact in FACTS if (value := group.runs[0].value(fact)) is not None)])
        own = [value for run in group.runs if isinstance(value := run.value(there.key), int | float)]
        scores.setdefault(name, {}).setdefault(dataset.removeprefix(PREFIX), []).extend(own)
    return scores


def lines(board: Board) -> list[str]:
    """What there is to say of VTAB-1k for each configuration: its means, or which tasks are missing."""
    text = []
    for name, scores in by_configuration(board).items():
        try:
            found = means(scores)
        except UserError as error:
            text.append(f"VTAB-1k, {name}: no mean yet: {error}")
            continue
        groups = ", ".join(f"{group} {percent(mean)}" for group, mean in found.groups.items())
        seeds = f"{found.seeds} seed{'s' * (found.seeds > 1)}"
        text.append(
            f"VTAB-1k, {name}: {groups}; mean of the groups {percent(found.of_groups)}, "
            f"of the 19 tasks {percent(found.of_tasks)} (top-1, %, {seeds})"
        )
    return text

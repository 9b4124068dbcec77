"""VTAB-1k's two means: over the three groups, and over the 19 tasks (Zhai et al. 2020, section 2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from mlx_peft.core.errors import UserError
from mlx_peft.data.sets.vtab import GROUPS, PREFIX, TASKS
from mlx_peft.report.format import percent
from mlx_peft.report.gather import FinishedRun

CONFIGURATION = ("method", "tokens", "model", "backend", "parameters.adapter")
"""The runs of one configuration have these in common, whatever the task: the head's size is not among them."""


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


def by_configuration(runs: Sequence[FinishedRun]) -> dict[str, dict[str, list[float]]]:
    """The test's top-1 of each configuration's tasks, of the runs on VTAB-1k that were tested.

    Raises UserError where two runs of a configuration have the same task and seed: they differ in something else.
    """
    found: dict[str, dict[str, list[float]]] = {}
    seen: dict[tuple[str, str, int], str] = {}
    for run in runs:
        dataset, score = run.value("dataset") or "", run.value("metrics.test.top1")
        if not dataset.startswith(PREFIX) or score is None:
            continue
        name = ", ".join(str(value) for fact in CONFIGURATION if (value := run.value(fact)) is not None)
        task = dataset.removeprefix(PREFIX)
        other = seen.setdefault((name, task, run.value("seed")), run.name)
        if other != run.name:
            raise UserError(
                f"{other} and {run.name} are of one method, task and seed: report on one configuration each"
            )
        found.setdefault(name, {}).setdefault(task, []).append(score)
    return found


def lines(runs: Sequence[FinishedRun]) -> list[str]:
    """What there is to say of VTAB-1k for each configuration: its means, or which tasks are missing."""
    text = []
    for name, scores in by_configuration(runs).items():
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

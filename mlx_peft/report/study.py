"""All that is known of the runs below a folder: what is compared, what it came to, and what had to be left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from mlx_peft.report import forked
from mlx_peft.report.boards import Board, board, without_copies, without_trials
from mlx_peft.report.gather import FinishedRun, Gathered
from mlx_peft.report.plan import Planned
from mlx_peft.report.verdicts import Standing, Verdict, on_each_set, over_sets, standing
from mlx_peft.studies.record import ChoiceRecord


@dataclass(frozen=True)
class Study:
    """The runs, and what they say together.

    Attributes:
        compared: the runs without copies and those that a study made to tune.
        verdicts: of each set, by its column's number on the board.
        choices: what studies chose on validation images, and from what.
        standing: the rows over all the sets, where there are several; ``over``: which of them are the best.
    """

    runs: Sequence[FinishedRun]
    compared: Sequence[FinishedRun]
    board: Board
    verdicts: Mapping[int, Verdict] = field(default_factory=dict)
    standing: Standing | None = None
    over: Verdict | None = None
    choices: Sequence[ChoiceRecord] = ()


def untested(runs: Sequence[FinishedRun], plan: Sequence[Planned] = ()) -> Study:
    """What is compared, and no test made of it."""
    compared, copies = without_copies(without_trials(runs, plan))
    return Study(runs, compared, board(compared, plan, copies))


def examined(found: Gathered) -> Study:
    """The runs below a folder, by the plans there, and all that can be tested."""
    plan = [one for plan in found.plans for one in plan.runs]
    compared, copies = without_copies(without_trials(found.finished, plan))
    there = board(compared, plan, copies)
    verdicts = on_each_set(there, forked.processes(found.finished))
    place = standing(there)
    return Study(
        found.finished,
        compared,
        there,
        verdicts,
        place,
        None if place is None else over_sets(place),
        [choice for plan in found.plans for choice in plan.choices],
    )

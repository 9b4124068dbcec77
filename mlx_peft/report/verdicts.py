"""Which methods are the best of a board, together with all that do not differ significantly from the first of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from mlx_peft.core.text import counted
from mlx_peft.report import forked
from mlx_peft.report.boards import Board
from mlx_peft.report.paired import Uncompared, Worth, worth
from mlx_peft.report.significance import (
    EQUAL,
    FEWEST_SETS,
    LEVEL,
    Paired,
    against_the_best,
    friedman,
    holm,
    paired_bootstrap,
    signed_rank,
)
from mlx_peft.report.significance import places as placed


@dataclass(frozen=True)
class Verdict:
    """Who leads, and who is as good as far as can be told.

    Attributes:
        leader: the row with the highest mean; None where there is no row.
        best: the rows that are set in bold.
        p: of each other row that was compared, corrected for all of these.
        said: how they were compared, or why they were not: a sentence.
        untested: the rows that were not compared, and why.
        differences: on one set, of each row that was compared, the leader less the row.
    """

    leader: str | None
    best: frozenset[str]
    p: Mapping[str, float]
    said: str
    untested: Mapping[str, str] = field(default_factory=dict)
    differences: Mapping[str, Paired] = field(default_factory=dict)


def on_each_set(board: Board, processes: int | None = 1) -> dict[int, Verdict]:
    """Over the images of each set, by the paired bootstrap, by column.

    Args:
        processes: that read predictions; see ``forked.each``.
    """
    cells = [*board.cells]
    found = dict(zip(cells, forked.each(partial(_worth, board), cells, processes), strict=True))
    return {
        at: on_one_set(board, at, {row: found[row, at] for row in board.rows if (row, at) in found})
        for at in range(len(board.columns))
    }


def on_one_set(board: Board, column: int, worths: Mapping[str, Worth | str]) -> Verdict:
    """Over the images of one set, by the paired bootstrap. Seeds are averaged on each image, and never tested.

    Args:
        worths: of each row what its answers are worth, or why that is not known.
    """
    scores = {row: found.mean for row in board.rows if (found := board.score(row, column))}
    if len(scores) < 2:
        return Verdict(next(iter(scores), None), frozenset(), {}, "")
    leader = _first(scores)
    there = board.columns[column]
    known = {row: one for row in scores if isinstance(one := worths[row], Worth)}
    untested = {row: reason for row in scores if isinstance(reason := worths[row], str)}
    if leader not in known:
        said = f"the highest mean is in bold, and nothing was tested: {untested[leader]}"
        return Verdict(leader, frozenset(_equal(scores, leader)), {}, said, untested)
    others = [row for row in known if row != leader and np.array_equal(known[row].images, known[leader].images)]
    untested |= {row: "it was measured on other images" for row in known if row not in (leader, *others)}
    differences = {row: paired_bootstrap(known[leader].values, known[row].values) for row in others}
    p = dict(zip(others, against_the_best([differences[row].p for row in others]), strict=True))
    best = {leader, *(row for row in others if p[row] >= LEVEL), *_equal(scores, leader)}
    images = counted(len(known[leader].images), f"{there.split} image")
    said = (
        f"in bold the highest mean and all that does not differ significantly from it (paired bootstrap over {images}, "
        f"seeds averaged on each image, corrected for all pairs, {100 * LEVEL:g} %)"
    )
    if untested:
        said += f"; not compared: {_listed(untested)}"
    return Verdict(leader, frozenset(best), p, said, untested, differences)


def _worth(board: Board, cell: tuple[str, int]) -> Worth | str:
    column = board.columns[cell[1]]
    try:
        return worth(board.cells[cell], column.split, column.measure)
    except Uncompared as reason:
        return str(reason)


def _listed(untested: Mapping[str, str]) -> str:
    first, *others = untested.items()
    more = f", and {len(others)} more" if others else ""
    return f"{first[0]} ({first[1]}){more}"


def _first(scores: Mapping[str, float]) -> str:
    """The first of the rows that have the highest score."""
    highest = max(scores.values())
    return next(row for row, score in scores.items() if score >= highest - EQUAL)


def _equal(scores: Mapping[str, float], leader: str) -> list[str]:
    return [row for row, score in scores.items() if abs(score - scores[leader]) <= EQUAL]


@dataclass(frozen=True)
class Standing:
    """The methods over all sets, of the rows that have a result on each.

    Attributes:
        rows: in the board's order.
        scores: the means over seeds, ``(sets, rows)``.
        places: each row's mean place over the sets, 1 for the best.
        friedman: p of the test that all are alike; None of fewer than three rows or two sets.
    """

    rows: Sequence[str]
    scores: np.ndarray
    places: Mapping[str, float]
    friedman: float | None


def standing(board: Board) -> Standing | None:
    """Of a board of several sets, two rows at least; None of any other."""
    rows, sets = board.complete(), range(len(board.columns))
    if len(rows) < 2 or len(sets) < 2:
        return None
    scores = np.array([[score.mean for row in rows if (score := board.score(row, at))] for at in sets])
    means = placed(scores).mean(axis=0)
    return Standing(
        rows,
        scores,
        dict(zip(rows, means.tolist(), strict=True)),
        friedman(scores) if len(rows) > 2 else None,
    )


def over_sets(found: Standing) -> Verdict:
    """Over the sets, by Wilcoxon's signed-rank test of the row with the best mean place against each other one."""
    leader = min(found.rows, key=lambda row: found.places[row])
    sets, of = len(found.scores), found.rows.index(leader)
    if sets < FEWEST_SETS:
        said = (
            f"the best mean place is in bold; {counted(sets, 'data set')} are too few for a test over them, which "
            f"needs {FEWEST_SETS}"
        )
        return Verdict(leader, frozenset(_equal(found.places, leader)), {}, said)
    others = [row for row in found.rows if row != leader]
    raw = [signed_rank(found.scores[:, of], found.scores[:, found.rows.index(row)]) for row in others]
    p = dict(zip(others, holm(raw), strict=True))
    said = (
        f"in bold the best mean place and all that does not differ significantly from it (Wilcoxon's signed-rank test "
        f"over {counted(sets, 'data set')}, Holm, {100 * LEVEL:g} %)"
    )
    return Verdict(leader, frozenset({leader, *(row for row in others if p[row] >= LEVEL)}), p, said)

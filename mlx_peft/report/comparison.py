"""Configurations side by side: means over seeds with their intervals, and which of them are the best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from mlx_peft.core.text import counted
from mlx_peft.report.boards import Board
from mlx_peft.report.columns import Column, shared
from mlx_peft.report.format import MISSING, decimal, percent
from mlx_peft.report.groups import Group, Spread
from mlx_peft.report.rows import Cell, Rows
from mlx_peft.report.verdicts import Standing, Verdict

MEAN = "mean over n seeds ± the sample's standard deviation"
INTERVAL = "95 % interval"
SMALLEST = 0.0005
"""A p that is smaller is not told in figures."""


@dataclass
class Notes:
    """The footnotes of a table, each once, numbered as they come."""

    lines: list[str] = field(default_factory=list)

    def mark(self, said: Sequence[str]) -> tuple[int, ...]:
        """The numbers of some of them."""
        self.lines += [line for line in dict.fromkeys(said) if line not in self.lines]
        return tuple(self.lines.index(line) + 1 for line in dict.fromkeys(said))


def one_set(board: Board, at: int, verdict: Verdict | None = None) -> Rows:
    """A row for every configuration on a set: the measure with its interval, then all else that was measured.

    A mean of fewer runs than the row has says of how many in brackets.
    """
    there, notes, tested = board.columns[at], Notes(), bool(verdict and verdict.p)
    named = {row: board.cells[row, at] for row in board.rows if (row, at) in board.cells}
    line, columns = shared([run for group in named.values() for run in group.runs])
    others = [column for column in columns if column.key not in ("seed", there.key)]
    first = ["runs", "n", there.heading, INTERVAL, *(["p"] if tested else [])]
    cells = []
    for row in board.rows:
        marks = notes.mark(board.notes.get((row, at), ()))
        if row not in named:
            if marks:
                cells.append([Cell(row), Cell("0", marks=marks), *[Cell(MISSING)] * (len(first) + len(others) - 2)])
            continue
        group, score = named[row], board.score(row, at)
        best = verdict is not None and row in verdict.best
        told = [Cell(row), Cell(str(len(group.runs)), marks=marks), Cell(_score(score, group), best)]
        told += [Cell(_interval(score)), *([Cell(_p(verdict, row))] if tested else [])]
        cells.append([*told, *(Cell(mean(group, column)) for column in others)])
    common = f"on {there.dataset}, {MEAN}" if len(board.columns) > 1 else MEAN
    return Rows(
        above=(common[:1].upper() + common[1:]) + (f"; all runs: {line}" if line else ""),
        headings=[*first, *(column.heading for column in others)],
        numeric=[*first[1:], *(column.heading for column in others if column.numeric)],
        cells=cells,
        below=tuple(filter(None, (_reading(verdict, tested), *map(_sentence, board.apart)))),
        notes=tuple(notes.lines),
        printed=(*first, *(column.heading for column in others if column.printed)),
    )


def _reading(verdict: Verdict | None, tested: bool) -> str:
    """How to read what is in bold."""
    if verdict is None or not verdict.said:
        return ""
    of = "; p is of the difference from the highest mean, corrected" if tested else ""
    return _sentence(verdict.said + of)


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def mean(group: Group, column: Column) -> str:
    """What the runs of a configuration have in a column: one value, or the mean."""
    found = {column.text(run.value(column.key)) for run in group.runs}
    if len(found) == 1 and not column.spreads:
        return found.pop()
    if not column.numeric or (spread := group.spread(column.key)) is None:
        return MISSING
    middle = spread.mean if column.spreads else round(spread.mean)
    deviation = f" ± {column.text(spread.deviation)}" if column.spreads and spread.deviation is not None else ""
    return column.text(middle) + deviation + (f" ({spread.n})" if spread.n < len(group.runs) else "")


def _score(spread: Spread | None, group: Group) -> str:
    if spread is None:
        return MISSING
    deviation = "" if spread.deviation is None else f" ± {percent(spread.deviation)}"
    return percent(spread.mean) + deviation + (f" ({spread.n})" if spread.n < len(group.runs) else "")


def _interval(spread: Spread | None) -> str:
    """Of one measurement there is none. No share is less than none or more than all, so the interval ends there."""
    if spread is None or spread.interval is None:
        return MISSING
    low, high = spread.interval
    return f"{percent(max(0.0, low))} to {percent(min(1.0, high))}"


def _p(verdict: Verdict | None, row: str) -> str:
    value = None if verdict is None else verdict.p.get(row)
    if value is None:
        return MISSING
    return f"< {SMALLEST * 2:g}" if value < SMALLEST else f"{value:.3f}"


def several_sets(board: Board, verdicts: Mapping[int, Verdict], found: Standing | None, over: Verdict | None) -> Rows:
    """Methods against data sets: in each cell the mean, the deviation and n; the mean over the sets, and mean places.

    In bold, in each column, what is best on that set; among the places, what is best over the sets.
    """
    notes = Notes()
    cells = []
    whole = set(board.complete())
    for row in board.rows:
        told = [Cell(row)]
        for at in range(len(board.columns)):
            marks = notes.mark(board.notes.get((row, at), ()))
            group, score = board.cells.get((row, at)), board.score(row, at)
            shown = MISSING if group is None or score is None else f"{_score(score, group)} (n = {score.n})"
            told.append(Cell(shown, at in verdicts and row in verdicts[at].best, marks))
        told.append(Cell(_mean_over_sets(board, row) if row in whole else MISSING))
        if found is not None:
            place = found.places.get(row)
            told.append(Cell(decimal(place, 2), over is not None and row in over.best))
        cells.append(told)
    names = [f"{there.dataset}: {there.heading}" for there in board.columns]
    last = [f"mean of {counted(len(board.columns), 'data set')}", *(["mean place"] if found is not None else [])]
    said = ["In the column of a data set, what is in bold in the table of that set is so here"]
    said += [f"In the last column: {over.said}"] if over is not None and over.said else []
    if found is not None and found.friedman is not None:
        said.append(f"Friedman's test that all {len(found.rows)} are alike: p = {found.friedman:.3g}")
    return Rows(
        above=_sentence(MEAN),
        headings=["method", *names, *last],
        numeric=[*names, *last],
        cells=cells,
        below=(*said, *map(_sentence, board.apart)),
        notes=tuple(notes.lines),
    )


def _mean_over_sets(board: Board, row: str) -> str:
    scores = [score.mean for at in range(len(board.columns)) if (score := board.score(row, at))]
    return percent(sum(scores) / len(scores)) if scores else MISSING

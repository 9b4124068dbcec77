"""Finished runs as tables: on the terminal, as Markdown, as LaTeX, as CSV. Every number is one that the runs measured.

What was measured with several seeds, or planned and not made, is compared first, and then there is a row for each run.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from mlx_peft.config.naming import label, short
from mlx_peft.core import text
from mlx_peft.report import rows
from mlx_peft.report.columns import Column, columns, keys, row, shared
from mlx_peft.report.comparison import one_set, several_sets
from mlx_peft.report.format import MISSING, decimal, percent
from mlx_peft.report.gather import Damaged, FinishedRun
from mlx_peft.report.rows import Rows, plain
from mlx_peft.report.study import Study, untested
from mlx_peft.studies.record import CandidateRecord, ChoiceRecord
from mlx_peft.tasks.registry import figures


def each(runs: Sequence[FinishedRun]) -> Rows:
    """A row for every run."""
    line, found = shared(runs)
    cells = [[run.name, *(column.text(run.value(column.key)) for column in found)] for run in runs]
    return Rows(f"All runs: {line}" if line else "", *_headed("run", found), plain(cells))


def _headed(first: str, found: Sequence[Column]) -> tuple[list[str], list[str]]:
    return [first, *(column.heading for column in found)], [one.heading for one in found if one.numeric]


def means(study: Study) -> list[Rows]:
    """The tables of what is compared: of several sets one over all of them first, then one of each.

    None where no configuration has two seeds, nothing is missing, and nothing was tested against anything.
    """
    board, verdicts = study.board, study.verdicts
    seeds = any(len(group.runs) > 1 for group in board.cells.values())
    if not (seeds or board.notes or any(verdict.p for verdict in verdicts.values()) or len(board.columns) > 1):
        return []
    found = [several_sets(board, verdicts, study.standing, study.over)] if len(board.columns) > 1 else []
    return found + [one_set(board, at, verdicts.get(at)) for at in range(len(board.columns))]


def choices(study: Study) -> list[Rows]:
    """What was chosen on validation images, and from what, in a table; none where nothing was."""
    cells = []
    for choice in study.choices:
        best, (by, scored) = _chosen(choice), _measure(choice)
        others = "; ".join(f"{_changes(one.changes)}: {scored(one)}" for one in choice.candidates)
        cells.append([choice.label, MISSING if best is None else _changes(best.changes), by, others])
    headings = ["runs", "chosen", "by", "tried, with the mean that each gave"]
    ends = [choice.label for choice in study.choices if _at_an_end(choice)]
    which = "all" if len(ends) == sum(_chosen(one) is not None for one in study.choices) else ", ".join(ends)
    below = (f"Chosen at an end of what was tried, so that a value beyond it may be better: {which}",) if ends else ()
    return [Rows("Chosen on validation images", headings, [], plain(cells), below)] if cells else []


def _chosen(choice: ChoiceRecord) -> CandidateRecord | None:
    at = choice.chosen
    return choice.candidates[at] if at is not None and at < len(choice.candidates) else None


def _measure(choice: ChoiceRecord) -> tuple[str, Callable[[CandidateRecord], str]]:
    """What was chosen by, as a heading says it, and how it is written: shares in per cent."""
    split, _, name = (choice.metric or MISSING).partition(".")
    called = figures().get(name)
    written = percent if called else (lambda score: decimal(score, 4))

    def scored(one: CandidateRecord) -> str:
        return (one.error or "not finished") if one.score is None else written(one.score)

    return f"{split} {called} (%)" if called else choice.metric or MISSING, scored


def _at_an_end(choice: ChoiceRecord) -> bool:
    """Whether a number was chosen that is the least or the most of several that gave a result."""
    best = _chosen(choice)
    if best is None:
        return False
    for key, value in best.changes.items():
        scored = [one.changes.get(key) for one in choice.candidates if one.score is not None]
        numbers = {one for one in scored if isinstance(one, int | float) and not isinstance(one, bool)}
        if len(numbers) > 1 and value in (min(numbers), max(numbers)):
            return True
    return False


def _changes(changes: Mapping[str, Any]) -> str:
    return ", ".join(f"{short(key, changes)} {label(value)}" for key, value in changes.items()) or MISSING


def sections(runs: Sequence[FinishedRun], study: Study | None = None) -> list[Rows]:
    """The tables of a report, from top to bottom; without a study nothing is tested."""
    whole = untested(runs) if study is None else study
    return [*means(whole), *choices(whole), each(runs)]


def markdown(runs: Sequence[FinishedRun], damaged: Sequence[Damaged] = (), study: Study | None = None) -> str:
    """The tables in Markdown; below, what had to be left out."""
    parts = [rows.markdown(one) for one in sections(runs, study)]
    parts += [f"Left out, damaged: {text.markdown(one.name)}: {text.markdown(one.reason)}." for one in damaged]
    return "\n\n".join(parts) + "\n"


def latex(study: Study) -> str:
    """The tables of what is compared and of what was chosen, for a paper; those of a single seed too."""
    board = study.board
    found = means(study) or [one_set(board, at, study.verdicts.get(at)) for at in range(len(board.columns))]
    return "\n\n".join([rows.PREAMBLE, *map(rows.latex, [*found, *choices(study)])]) + "\n"


def to_csv(runs: Sequence[FinishedRun]) -> str:
    """The values themselves: fractions, seconds, bytes; empty where one was not measured.

    A name that a spreadsheet would take for a formula stands behind an apostrophe.
    """
    return _csv(["run", *keys()], map(row, runs))


def means_csv(study: Study) -> str:
    """What is compared, unrounded: of each configuration and set its mean, deviation, interval, n and p."""
    found = []
    for (name, at), group in study.board.cells.items():
        there, score = study.board.columns[at], study.board.score(name, at)
        if score is None:
            continue
        verdict = study.verdicts.get(at)
        low, high = score.interval or (None, None)
        found.append({
            "runs": name, "dataset": there.dataset, "measure": there.key, "n": score.n, "mean": score.mean,
            "deviation": score.deviation, "low": low, "high": high,
            "best": None if verdict is None else name in verdict.best,
            "p": None if verdict is None else verdict.p.get(name),
            **{column.key: group.runs[0].value(column.key) for place in columns() for column in place
               if column.printed and not column.spreads},
            **{column.key: None if (spread := group.spread(column.key)) is None else spread.mean
               for place in columns() for column in place if column.printed and column.spreads},
            "missing": "; ".join(study.board.notes.get((name, at), ())),
        })  # fmt: skip
    return _csv([*found[0]] if found else ["runs"], found)


def _csv(headings: Sequence[str], lines: Iterable[dict[str, Any]]) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, headings, lineterminator="\n")
    writer.writeheader()
    for line in lines:
        writer.writerow({key: text.csv_cell(value) if isinstance(value, str) else value for key, value in line.items()})
    return out.getvalue()

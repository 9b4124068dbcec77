"""Finished runs as a table: on the terminal, as Markdown, as CSV. Every number is one that the runs measured.

Where several differ in their seed alone, a table of their means stands before that of the runs.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from mlx_peft.config.tokens import NONE
from mlx_peft.core import text
from mlx_peft.core.text import printable
from mlx_peft.report.blocks import Columns
from mlx_peft.report.format import MISSING, count, decimal, percent
from mlx_peft.report.gather import Damaged, FinishedRun
from mlx_peft.report.groups import Group, grouped
from mlx_peft.tasks.registry import figures, leading_metrics


@dataclass(frozen=True)
class Column:
    """A column: where its value stands in ``result.json``, its heading, and how the value is written.

    Attributes:
        spreads: whether it is something of which seeds give a mean and a standard deviation.
    """

    key: str
    heading: str
    text: Callable[[Any], str]
    numeric: bool = True
    spreads: bool = False


def _text(value: Any) -> str:
    return MISSING if value is None else str(value)


def _megabytes(value: int | None) -> str:
    return MISSING if value is None else decimal(value / 1e6, 0)


def _megabytes_precisely(value: int | None) -> str:
    return MISSING if value is None else decimal(value / 1e6, 2)


def _tokens(value: str | None) -> str:
    return value or NONE


def _loss(value: float | None) -> str:
    return decimal(value, 4)


def _selection(value: str | None) -> str:
    """``val.top1``, by which the epoch was chosen, or ``last epoch``, where there was nothing to choose it by."""
    return MISSING if value is None else "validation" if value.startswith("val.") else value


RUN_COLUMNS = (
    Column("method", "method", _text, numeric=False),
    Column("tokens", "tokens", _tokens, numeric=False),
    Column("model", "model", _text, numeric=False),
    Column("dataset", "data set", _text, numeric=False),
    Column("backend", "backend", _text, numeric=False),
    Column("seed", "seed", _text),
    Column("selected.by", "selection", _selection, numeric=False),
)
COST_COLUMNS = (
    Column("parameters.trainable", "trained", count),
    Column("parameters.adapter", "without head", count),
    Column("time.train_seconds", "seconds", decimal, spreads=True),
    Column("time.epoch_seconds", "s/epoch", decimal, spreads=True),
    Column("time.images_per_second", "images/s", lambda value: decimal(value, 0), spreads=True),
    Column("stored.total_bytes", "stored (MB)", _megabytes_precisely),
    Column("memory.process_bytes", "peak of process (MB)", _megabytes),
    Column("memory.arrays_bytes", "peak of arrays (MB)", _megabytes),
)

DETAILS = ("selected.epoch", "configuration_id")
"""CSV and JSON have these besides the columns."""

SHARED = ("tokens", "model", "dataset", "backend", "seed", "selected.by")
"""These columns leave the table for the line above it where all the runs agree."""


def columns() -> list[tuple[Column, ...]]:
    """The places of a table from left to right, with the columns that may stand in each.

    There are several where each task has its own leading metric: the later ones are for runs without the earlier.
    """
    called = figures()
    measured: list[tuple[Column, ...]] = []
    for split in ("test", "val"):
        measured.append(
            tuple(
                Column(f"metrics.{split}.{name}", f"{split} {called[name]} (%)", percent, spreads=True)
                for name in leading_metrics()
            )
        )
        measured.append((Column(f"metrics.{split}.loss", f"{split} loss", _loss, spreads=True),))
    return [*((column,) for column in RUN_COLUMNS), *measured, *((column,) for column in COST_COLUMNS)]


def keys() -> list[str]:
    """What CSV and JSON have of a run, by its place in ``result.json``."""
    places = columns()
    usual, others = [place[0] for place in places], [column for place in places for column in place[1:]]
    return [*(column.key for column in usual), *DETAILS, *(column.key for column in others)]


def row(run: FinishedRun) -> dict[str, Any]:
    """The values of a run by column, unrounded; None where one was not measured."""
    return {"run": run.name} | {key: run.value(key) for key in keys()}


def shared(runs: Sequence[FinishedRun]) -> tuple[str, list[Column]]:
    """What several runs have in common, in a line, and the columns that are left: of what one of them measured.

    Of one run nothing is taken out.
    """
    filled = _filled(runs)
    if len(runs) == 1:
        return "", filled
    values = {column: [run.value(column.key) for run in runs] for column in filled}
    told = [column for column in filled if column.key in SHARED and values[column][0] is not None]
    common = [column for column in told if len(set(map(str, values[column]))) == 1]
    line = ", ".join(f"{column.heading} {column.text(values[column][0])}" for column in common)
    measured = [column for column in filled if any(value is not None for value in values[column])]
    return line, [column for column in measured if column not in common]


def _filled(runs: Sequence[FinishedRun]) -> list[Column]:
    """Of each place the columns in which runs have values, each for those without the ones before; else the first."""
    found: list[Column] = []
    for place in columns():
        filled, without = [], list(runs)
        for column in place:
            lacking = [run for run in without if run.value(column.key) is None]
            filled += [column] * (len(lacking) < len(without))
            without = lacking
        found += filled or place[:1]
    return found


@dataclass(frozen=True)
class Rows:
    """A table before it is drawn: what all rows have in common, the headings, and the cells as plain text."""

    above: str
    headings: list[str]
    numeric: list[str]
    cells: list[list[str]]


def each(runs: Sequence[FinishedRun]) -> Rows:
    """A row for every run."""
    line, columns = shared(runs)
    cells = [[run.name, *(column.text(run.value(column.key)) for column in columns)] for run in runs]
    return Rows(f"All runs: {line}" if line else "", *_headed("run", columns), cells)


def means(runs: Sequence[FinishedRun]) -> Rows | None:
    """A row for every configuration: the mean over its seeds and the sample's standard deviation, and how many seeds.

    None where no configuration has two. A mean of fewer runs than the row has says of how many in brackets.
    """
    groups = grouped(runs)
    if len(groups) == len(runs):
        return None
    columns = [column for column in shared(runs)[1] if column.key != "seed"]
    headings, numeric = _headed("runs", columns)
    cells = [[one.name, str(len(one.runs)), *(_mean(one, column) for column in columns)] for one in groups]
    above = "Mean over n seeds ± the sample's standard deviation"
    return Rows(above, [headings[0], "n", *headings[1:]], ["n", *numeric], cells)


def _headed(first: str, columns: Sequence[Column]) -> tuple[list[str], list[str]]:
    return [first, *(column.heading for column in columns)], [one.heading for one in columns if one.numeric]


def _mean(group: Group, column: Column) -> str:
    if not column.numeric:
        found = {column.text(run.value(column.key)) for run in group.runs}
        return found.pop() if len(found) == 1 else MISSING
    if (spread := group.spread(column.key)) is None:
        return MISSING
    mean = spread.mean if column.spreads else round(spread.mean)
    deviation = f" ± {column.text(spread.deviation)}" if column.spreads and spread.deviation is not None else ""
    return column.text(mean) + deviation + (f" ({spread.n})" if spread.n < len(group.runs) else "")


def sections(runs: Sequence[FinishedRun]) -> list[Rows]:
    """The tables of a report, from top to bottom."""
    summed = means(runs)
    return [each(runs)] if summed is None else [summed, each(runs)]


def drawn(rows: Rows) -> Table:
    """A table for a terminal, which obeys nothing in a name: neither escapes nor rich's markup."""
    view = Table(box=SIMPLE_HEAD, title=Text(printable(rows.above)) if rows.above else None, title_justify="left")
    for heading in rows.headings:
        view.add_column(heading, justify="right" if heading in rows.numeric else "left", overflow="fold")
    for cells in rows.cells:
        view.add_row(*(Text(printable(cell)) for cell in cells))
    return view


def markdown(runs: Sequence[FinishedRun], damaged: Sequence[Damaged] = ()) -> str:
    """The tables in Markdown, their columns aligned for whoever reads the source; below, what had to be left out."""
    parts = []
    for rows in sections(runs):
        parts += [f"{text.markdown(rows.above)}."] if rows.above else []
        parts.append(
            Columns(rows.headings, rows.numeric).aligned([[text.markdown(cell) for cell in row] for row in rows.cells])
        )
    parts += [f"Left out, damaged: {text.markdown(one.name)}: {text.markdown(one.reason)}." for one in damaged]
    return "\n\n".join(parts) + "\n"


def to_csv(runs: Sequence[FinishedRun]) -> str:
    """The values themselves: fractions, seconds, bytes; empty where one was not measured.

    A name that a spreadsheet would take for a formula stands behind an apostrophe.
    """
    out = io.StringIO()
    writer = csv.DictWriter(out, ["run", *keys()], lineterminator="\n")
    writer.writeheader()
    for run in runs:
        cells = {key: text.csv_cell(value) if isinstance(value, str) else value for key, value in row(run).items()}
        writer.writerow(cells)
    return out.getvalue()

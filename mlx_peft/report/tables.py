"""Finished runs as a table: on the terminal, as Markdown, as CSV. Every number is one that the runs measured."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from mlx_peft.core import text
from mlx_peft.core.text import printable
from mlx_peft.report.blocks import Columns
from mlx_peft.report.format import MISSING, count, decimal, percent
from mlx_peft.report.gather import Damaged, FinishedRun
from mlx_peft.tasks.registry import figures, leading_metrics


@dataclass(frozen=True)
class Column:
    """A column: where its value stands in ``result.json``, its heading, and how the value is written."""

    key: str
    heading: str
    text: Callable[[Any], str]
    numeric: bool = True


def _text(value: Any) -> str:
    return MISSING if value is None else str(value)


def _megabytes(value: int | None) -> str:
    return MISSING if value is None else decimal(value / 1e6, 0)


def _megabytes_precisely(value: int | None) -> str:
    return MISSING if value is None else decimal(value / 1e6, 2)


RUN_COLUMNS = (
    Column("method", "method", _text, numeric=False),
    Column("model", "model", _text, numeric=False),
    Column("dataset", "data set", _text, numeric=False),
    Column("backend", "backend", _text, numeric=False),
    Column("seed", "seed", _text),
)
COST_COLUMNS = (
    Column("parameters.trainable", "trained", count),
    Column("parameters.adapter", "without head", count),
    Column("time.train_seconds", "seconds", decimal),
    Column("time.epoch_seconds", "s/epoch", decimal),
    Column("time.images_per_second", "images/s", lambda value: decimal(value, 0)),
    Column("stored.total_bytes", "stored (MB)", _megabytes_precisely),
    Column("memory.peak_bytes", "peak memory (MB)", _megabytes),
)

DETAILS = ("metrics.test.loss", "metrics.val.loss", "selected.epoch")
"""CSV and JSON have these besides the columns."""

SHARED = ("model", "dataset", "backend", "seed")
"""These columns leave the table for the line above it where all the runs agree."""


def columns() -> list[tuple[Column, ...]]:
    """The places of a table from left to right, with the columns that may stand in each.

    There are several where each task has its own leading metric: the later ones are for runs without the earlier.
    """
    called = figures()
    leading = [
        tuple(Column(f"metrics.{split}.{name}", f"{split} {called[name]} (%)", percent) for name in leading_metrics())
        for split in ("test", "val")
    ]
    return [*((column,) for column in RUN_COLUMNS), *leading, *((column,) for column in COST_COLUMNS)]


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
    common = [column for column in filled if column.key in SHARED and len(set(map(str, values[column]))) == 1]
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


def table(runs: Sequence[FinishedRun]) -> Table:
    """The table for a terminal, which obeys nothing in a name: neither escapes nor rich's markup."""
    line, columns = shared(runs)
    view = Table(box=SIMPLE_HEAD, title=Text(printable(line)) if line else None, title_justify="left")
    view.add_column("run", overflow="fold")
    for column in columns:
        view.add_column(column.heading, justify="right" if column.numeric else "left", overflow="fold")
    for run in runs:
        cells = [run.name, *(column.text(run.value(column.key)) for column in columns)]
        view.add_row(*(Text(printable(cell)) for cell in cells))
    return view


def markdown(runs: Sequence[FinishedRun], damaged: Sequence[Damaged] = ()) -> str:
    """The table in Markdown, its columns aligned for whoever reads the source; below it, what had to be left out."""
    line, columns = shared(runs)
    rows = [[run.name, *(column.text(run.value(column.key)) for column in columns)] for run in runs]
    found = Columns(
        ["run", *(column.heading for column in columns)], [column.heading for column in columns if column.numeric]
    ).aligned([[text.markdown(cell) for cell in cells] for cells in rows])
    left_out = [f"Left out, damaged: {text.markdown(one.name)}: {text.markdown(one.reason)}." for one in damaged]
    above = [f"All runs: {text.markdown(line)}.", ""] if line else []
    return "\n".join([*above, found, *(part for one in left_out for part in ("", one))]) + "\n"


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

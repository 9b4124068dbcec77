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
from mlx_peft.report.format import MISSING, count, decimal, percent
from mlx_peft.report.gather import Damaged, Run


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


COLUMNS = (
    Column("method", "method", _text, numeric=False),
    Column("model", "model", _text, numeric=False),
    Column("dataset", "data set", _text, numeric=False),
    Column("backend", "backend", _text, numeric=False),
    Column("seed", "seed", _text),
    Column("metrics.test.top1", "test top-1 (%)", percent),
    Column("metrics.val.top1", "val top-1 (%)", percent),
    Column("parameters.trainable", "trained", count),
    Column("parameters.adapter", "without head", count),
    Column("time.train_seconds", "seconds", decimal),
    Column("time.epoch_seconds", "s/epoch", decimal),
    Column("time.images_per_second", "images/s", lambda value: decimal(value, 0)),
    Column("stored.total_bytes", "stored (MB)", _megabytes_precisely),
    Column("memory.peak_bytes", "peak memory (MB)", _megabytes),
)
INSTEAD = {
    "metrics.test.top1": Column("metrics.test.auroc", "test AUROC (%)", percent),
    "metrics.val.top1": Column("metrics.val.auroc", "val AUROC (%)", percent),
}
"""What is shown of runs that have no such value, since their images may have several classes."""

DETAILS = ("metrics.test.loss", "metrics.val.loss", "selected.epoch")
"""What CSV and JSON have besides the columns."""

FACTS = ("model", "dataset", "backend", "seed")
"""Columns that leave the table for the line above it where all the runs agree."""

KEYS = (*(column.key for column in COLUMNS), *DETAILS, *(column.key for column in INSTEAD.values()))


def row(run: Run) -> dict[str, Any]:
    """The values of a run by column, unrounded; None where one was not measured."""
    return {"run": run.name} | {key: run.value(key) for key in KEYS}


def shared(runs: Sequence[Run]) -> tuple[str, list[Column]]:
    """What several runs have in common, in a line, and the columns that are left: of what one of them measured.

    Of one run nothing is taken out.
    """
    columns = _told(runs)
    if len(runs) == 1:
        return "", columns
    values = {column: [run.value(column.key) for run in runs] for column in columns}
    common = [column for column in columns if column.key in FACTS and len(set(map(str, values[column]))) == 1]
    line = ", ".join(f"{column.heading} {column.text(values[column][0])}" for column in common)
    measured = [column for column in columns if any(value is not None for value in values[column])]
    return line, [column for column in measured if column not in common]


def _told(runs: Sequence[Run]) -> list[Column]:
    """COLUMNS, with those of INSTEAD beside theirs, or in their place where no run has a value there."""
    found = []
    for column in COLUMNS:
        lacking = [run for run in runs if run.value(column.key) is None]
        other = INSTEAD.get(column.key)
        told = other is not None and any(run.value(other.key) is not None for run in lacking)
        found += [column] * (not told or len(lacking) < len(runs))
        found += [other] if told and other else []
    return found


def table(runs: Sequence[Run]) -> Table:
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


def markdown(runs: Sequence[Run], damaged: Sequence[Damaged] = ()) -> str:
    """The table in Markdown, its columns aligned for whoever reads the source; below it, what had to be left out."""
    line, columns = shared(runs)
    rows = [["run", *(column.heading for column in columns)]]
    rows += [[run.name, *(column.text(run.value(column.key)) for column in columns)] for run in runs]
    rows = [[text.markdown(cell) for cell in cells] for cells in rows]
    numeric = [False, *(column.numeric for column in columns)]
    widths = [max(3, *map(len, cells)) for cells in zip(*rows, strict=True)]

    def joined(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cells) + " |"

    def aligned(cells: Sequence[str]) -> str:
        pairs = zip(cells, widths, numeric, strict=True)
        return joined([f"{cell:>{width}}" if right else f"{cell:<{width}}" for cell, width, right in pairs])

    rule = ["-" * (width - 1) + (":" if right else "-") for width, right in zip(widths, numeric, strict=True)]
    lines = [aligned(rows[0]), joined(rule), *map(aligned, rows[1:])]
    left_out = [f"Left out, damaged: {text.markdown(one.name)}: {text.markdown(one.reason)}." for one in damaged]
    above = [f"All runs: {text.markdown(line)}.", ""] if line else []
    return "\n".join([*above, *lines, *(part for one in left_out for part in ("", one))]) + "\n"


def to_csv(runs: Sequence[Run]) -> str:
    """The values themselves: fractions, seconds, bytes; empty where one was not measured.

    A name that a spreadsheet would take for a formula stands behind an apostrophe.
    """
    out = io.StringIO()
    writer = csv.DictWriter(out, ["run", *KEYS], lineterminator="\n")
    writer.writeheader()
    for run in runs:
        cells = {key: text.csv_cell(value) if isinstance(value, str) else value for key, value in row(run).items()}
        writer.writerow(cells)
    return out.getvalue()

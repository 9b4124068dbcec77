"""What a table may say of a run: where each value stands in its result, its heading, and how it is written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from mlx_peft.config.tokens import NONE
from mlx_peft.report.format import MISSING, count, decimal, percent
from mlx_peft.report.gather import FinishedRun
from mlx_peft.tasks.registry import figures, leading_metrics


@dataclass(frozen=True)
class Column:
    """A column: where its value stands in ``result.json``, its heading, and how the value is written.

    Attributes:
        spreads: whether it is something of which seeds give a mean and a standard deviation.
        printed: whether a paper's table has it.
    """

    key: str
    heading: str
    text: Callable[[Any], str]
    numeric: bool = True
    spreads: bool = False
    printed: bool = False


def _text(value: Any) -> str:
    return MISSING if value is None else str(value)


def _megabytes(value: int | None) -> str:
    return MISSING if value is None else decimal(value / 1e6, 0)


def _megabytes_precisely(value: int | None) -> str:
    return MISSING if value is None else decimal(value / 1e6, 2)


def _tokens(value: str | None) -> str:
    return value or NONE


def _general(value: float | None) -> str:
    return MISSING if value is None else f"{value:g}"


def _bits(value: int | None) -> str:
    return "float" if value is None else str(value)


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
    Column("selected.by", "selection", _selection, numeric=False, printed=True),
)
COST_COLUMNS = (
    Column("parameters.trainable", "trained", count, printed=True),
    Column("parameters.adapter", "without head", count, printed=True),
    Column("time.train_seconds", "seconds", decimal, spreads=True),
    Column("time.epoch_seconds", "s/epoch", decimal, spreads=True, printed=True),
    Column("time.images_per_second", "images/s", lambda value: decimal(value, 0), spreads=True),
    Column("stored.total_bytes", "stored (MB)", _megabytes_precisely),
    Column("memory.process_bytes", "peak of process (MB)", _megabytes, printed=True),
    Column("memory.arrays_bytes", "peak of arrays (MB)", _megabytes, printed=True),
)
PROTOCOL_COLUMNS = (
    Column("protocol.augmentation", "augmentation", _text, numeric=False, printed=True),
    Column("protocol.normalisation", "normalisation", _text, numeric=False, printed=True),
    Column("protocol.epochs", "epochs", count, printed=True),
    Column("protocol.lr", "learning rate", _general, printed=True),
    Column("protocol.weight_decay", "weight decay", _general),
    Column("protocol.bits", "bits", _bits, printed=True),
)

DETAILS = ("selected.epoch", "configuration_id")
"""CSV and JSON have these besides the columns."""

SHARED = (
    *("tokens", "model", "dataset", "backend", "seed", "selected.by"),
    *(column.key for column in PROTOCOL_COLUMNS),
)
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
    fixed = [[(column,) for column in some] for some in (RUN_COLUMNS, COST_COLUMNS, PROTOCOL_COLUMNS)]
    return [*fixed[0], *measured, *fixed[1], *fixed[2]]


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

    Of one run nothing is taken out but what is not known of its metrics and its protocol.
    """
    filled = _filled(runs)
    if len(runs) == 1:
        always = {*RUN_COLUMNS, *COST_COLUMNS}
        return "", [column for column in filled if column in always or runs[0].value(column.key) is not None]
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

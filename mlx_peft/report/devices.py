"""Steps on many devices, as one table by chip."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from mlx_peft.checks.devices import Bench, Record, Speed
from mlx_peft.core.text import markdown
from mlx_peft.report.blocks import Columns

COLUMNS = Columns(
    ("chip", "memory", "model", "batch", "precision", "method", "framework", "images/s", "step, ms", "others took"),
    numeric=("memory", "batch", "images/s", "step, ms", "others took"),
)
HEAD = """# Steps on devices

A training step on each device that somebody has measured; the files are in `devices`, and
[CONTRIBUTING.md](../../CONTRIBUTING.md) says how to add yours and how this page is made of them. Images a second and
milliseconds are of the fastest step; the last column is the share of the processors that others took meanwhile.
"""


def page(found: Mapping[str, Record]) -> str:
    """The whole page."""
    return f"{HEAD}\n{table(found.values())}\n"


def table(found: Iterable[Record]) -> str:
    """A row for each contender's steps, chip by chip, the fastest first."""
    rows = [
        (order(record.chip), bench.model, bench.batch_size, -speed.images_per_second, cells(record, bench, speed))
        for record in found
        for bench in record.benchmarks
        for speed in bench.speeds
    ]
    return COLUMNS.table(row[-1] for row in sorted(rows, key=lambda row: row[:-1]))


def order(chip: str) -> tuple[str | int, ...]:
    """Chips by name, their numbers as numbers: an M10 comes behind an M9."""
    parts = re.split(r"(\d{1,9})", chip.lower())
    return tuple(part.zfill(9) if part.isdecimal() else part for part in parts)


def cells(record: Record, bench: Bench, speed: Speed) -> list[str]:
    """One row."""
    method = f"{speed.method} r {bench.rank}" if speed.method == "lora" else speed.method
    return [
        markdown(record.chip),
        f"{record.memory_gib} GiB",
        markdown(bench.model),
        str(bench.batch_size),
        markdown(f"{bench.precision}{', compiled' if bench.compile else ''}"),
        markdown(method),
        markdown(speed.framework if speed.contender != "peft" else f"peft on {speed.framework}"),
        f"{speed.images_per_second:,.1f}",
        f"{1000 * speed.seconds:,.0f}",
        f"{record.others_share:.0%}",
    ]

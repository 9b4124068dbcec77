"""A report on disk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mlx_peft.core.writing import disk_errors, write_together
from mlx_peft.report import curves, tables
from mlx_peft.report.drawing import pictures
from mlx_peft.report.gather import Damaged, FinishedRun

DPI = 300
"""Dots an inch of a picture for the screen."""


def write(runs: Sequence[FinishedRun], out: Path, damaged: Sequence[Damaged] = ()) -> list[Path]:
    """Writes ``table.md``, ``table.csv`` and, where epochs were recorded, ``curves.png`` and ``.pdf``.

    Returns what was written.

    Raises UserError where they cannot be written; then none of them is changed.
    """
    files = {
        out / "table.md": tables.markdown(runs, damaged).encode(),
        out / "table.csv": tables.to_csv(runs).encode(),
    }
    if (figure := curves.draw(runs)) is not None:
        files |= {out / f"curves{ending}": content for ending, content in pictures(figure, DPI).items()}
    with disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    write_together(files)
    return list(files)

"""The files of figures."""

from __future__ import annotations

from collections.abc import Sequence

from mlx_peft.report import forked
from mlx_peft.report.drawing import pictures
from mlx_peft.report.figures.layout import SIZES, Drawing

DPI = 200
"""Dots an inch of a picture for the screen; for print there is the PDF."""


def drawn(shown: Sequence[Drawing], processes: int | None = 1) -> dict[str, bytes]:
    """``NAME-single.png`` and so on, each figure at each size, by the file's name.

    Args:
        processes: see ``forked.each``.
    """
    import matplotlib.figure  # noqa: F401  before any fork, once for all

    jobs = [(drawing, size) for drawing in shown for size in SIZES]
    return {name: content for files in forked.each(_files, jobs, processes) for name, content in files.items()}


def _files(job: tuple[Drawing, str]) -> dict[str, bytes]:
    drawing, size = job
    found = pictures(drawing.draw(SIZES[size]), DPI)
    return {f"{drawing.name}-{size}{ending}": content for ending, content in found.items()}

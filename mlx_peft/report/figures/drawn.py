"""The files of figures, drawn by several processes where there is much to draw."""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Sequence

from mlx_peft.report.drawing import pictures
from mlx_peft.report.figures.layout import SIZES, Drawing

DPI = 300
"""Dots an inch of a picture for the screen."""


def drawn(shown: Sequence[Drawing], processes: int = 1) -> dict[str, bytes]:
    """``NAME-single.png`` and so on, each figure at each size, by the file's name.

    Args:
        processes: at most so many, where one can be forked: elsewhere all would have to be sent to them.
    """
    jobs = [(drawing, size) for drawing in shown for size in SIZES]
    if min(processes, len(jobs)) < 2 or sys.platform != "linux":
        return {name: content for drawing, size in jobs for name, content in _files(drawing, size).items()}
    import matplotlib.figure  # noqa: F401  before the fork, once for all

    _JOBS[:] = jobs
    with multiprocessing.get_context("fork").Pool(min(processes, len(jobs))) as pool:
        found = pool.map(_job, range(len(jobs)), chunksize=1)
    _JOBS.clear()
    return {name: content for files in found for name, content in files.items()}


_JOBS: list[tuple[Drawing, str]] = []
"""What the forked processes draw: they have it from before the fork, and are told a number."""


def _job(number: int) -> dict[str, bytes]:
    return _files(*_JOBS[number])


def _files(drawing: Drawing, size: str) -> dict[str, bytes]:
    found = pictures(drawing.draw(SIZES[size]), DPI)
    return {f"{drawing.name}-{size}{ending}": content for ending, content in found.items()}

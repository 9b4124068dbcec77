"""Figures that are laid out and drawn as always, but once and coarsely: a fine PNG, and a PDF of the same, take
most of the time. And figures that are made and no more, where a command that draws is run for what it does besides."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from PIL import Image

from mlx_peft.report import drawing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COARSE = 40
"""Dots an inch: whatever is wrong with a figure is so at any number of them."""

png, pdf = drawing.png, drawing.pdf


def sketch(figure: Figure, dpi: int) -> bytes:
    return png(figure, min(dpi, COARSE))


def white(figure: Figure, dpi: int) -> bytes:
    """A picture of one dot."""
    file = io.BytesIO()
    Image.new("L", (1, 1), 255).save(file, "PNG")
    return file.getvalue()


def no_pdf(figure: Figure, dpi: int) -> bytes:
    return b""


@contextmanager
def drawn_by(png: Callable[[Figure, int], bytes], pdf: Callable[[Figure, int], bytes]) -> Iterator[pytest.MonkeyPatch]:
    from mlx_peft.report import explained, overview, preview  # here: they import all that a run needs

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drawing, "pdf", pdf)
        for module in (drawing, explained, overview, preview):
            patch.setattr(module, "png", png)
        yield patch


@contextmanager
def sketched() -> Iterator[None]:
    with drawn_by(sketch, no_pdf):
        yield


@contextmanager
def undrawn() -> Iterator[None]:
    with drawn_by(white, no_pdf) as patch:
        patch.setattr(drawing, "laid_out", lambda figure, dpi: None)
        yield


@contextmanager
def drawn_finely() -> Iterator[None]:
    with drawn_by(png, pdf):
        yield

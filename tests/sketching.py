"""Figures that are laid out and drawn as always, but once and coarsely: a fine PNG, and a PDF of the same, take
most of the time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from mlx_peft.report import drawing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COARSE = 40
"""Dots an inch: whatever is wrong with a figure is so at any number of them."""

png, pdf = drawing.png, drawing.pdf


def sketch(figure: Figure, dpi: int) -> bytes:
    return png(figure, min(dpi, COARSE))


def no_pdf(figure: Figure, dpi: int) -> bytes:
    return b""


@contextmanager
def sketched() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drawing, "png", sketch)
        patch.setattr(drawing, "pdf", no_pdf)
        yield


@contextmanager
def drawn_finely() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drawing, "png", png)
        patch.setattr(drawing, "pdf", pdf)
        yield

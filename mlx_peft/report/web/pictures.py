"""Figures inside a page: as many dots as a screen has for them, and few bytes."""

from __future__ import annotations

import io
from base64 import b64encode
from dataclasses import dataclass

from PIL import Image

from mlx_peft.report.overview import few_colours

WIDEST = 1440
"""Dots: twice what a column of the page has."""


@dataclass(frozen=True)
class Picture:
    """A figure: its address, which holds it, its size, and what it shows."""

    source: str
    width: int
    height: int
    caption: str


def picture(png: bytes, caption: str) -> Picture:
    """Of a figure as PNG."""
    image: Image.Image = Image.open(io.BytesIO(png))
    if image.width > WIDEST:
        image = image.convert("RGB").resize(
            (WIDEST, round(image.height * WIDEST / image.width)), Image.Resampling.LANCZOS
        )
        file = io.BytesIO()
        image.save(file, "PNG", compress_level=1)
        png = file.getvalue()
    content = b64encode(few_colours(png)).decode()
    return Picture(f"data:image/png;base64,{content}", image.width, image.height, caption)

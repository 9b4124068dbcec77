"""Figures inside a page: as many dots as a screen has for them, and few bytes."""

from __future__ import annotations

import io
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass

from PIL import Image

from mlx_peft.report.figures import SIZES, Drawing
from mlx_peft.report.overview import few_colours

WIDEST = 1440
"""Dots: twice what a screen shows of it at once."""


@dataclass(frozen=True)
class Picture:
    """A figure: its address, which holds it, its size, and what it shows.

    Attributes:
        narrow: the address of the same for a narrow screen; None where it fits there as it is.
    """

    source: str
    width: int
    height: int
    caption: str
    narrow: str | None = None


def picture(drawing: Drawing, files: Mapping[str, bytes]) -> Picture:
    """Of a figure, whose files are there by name: as wide as a column, or as two with the narrower one beside it."""
    single, double = (files[f"{drawing.name}-{size}.png"] for size in SIZES)
    image, source = _embedded(double if drawing.wide else single)
    narrow = _embedded(single)[1] if drawing.wide else None
    return Picture(source, image.width, image.height, drawing.caption, narrow)


def _embedded(png: bytes) -> tuple[Image.Image, str]:
    """A figure, and its address."""
    image: Image.Image = Image.open(io.BytesIO(png))
    if image.width > WIDEST:
        image = image.convert("RGB").resize(
            (WIDEST, round(image.height * WIDEST / image.width)), Image.Resampling.LANCZOS
        )
        file = io.BytesIO()
        image.save(file, "PNG", compress_level=1)
        png = file.getvalue()
    content = b64encode(few_colours(png)).decode()
    return image, f"data:image/png;base64,{content}"

"""A few images under one another, and what a model made of them: one picture for a page."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from mlx_peft.artifacts.explain import Explained
from mlx_peft.report.drawing import fitted, png
from mlx_peft.report.explained import reduced, spread
from mlx_peft.report.patches import heat, regions

MOST = 8
"""Images that it has, at most."""
SIDE, CAPTION, DPI, POINTS = 1.15, 0.22, 100, 7
"""Inches: of an image, and of the line above it; dots an inch; the letters' size."""
BLOCKS = 5
"""So many are drawn, evenly spread, unless others are asked for."""


def overview(images: Sequence[Explained], answers: Sequence[str], blocks: Sequence[int] | None = None) -> bytes:
    """The images as PNG, a row each: what the model sees, both maps, and the blocks: the tokens that come to them where
    there become fewer, and else what attention takes.

    Args:
        images: of one model.
        answers: what it says of each, in a line.
        blocks: from 0; None: BLOCKS of them.
    """
    from matplotlib.figure import Figure

    chosen = spread(len(images[0].tokens), BLOCKS) if blocks is None else blocks
    rows = [_row(image, answer, chosen) for image, answer in zip(images, answers, strict=True)]
    size = (len(rows[0]) * SIDE, len(rows) * (SIDE + CAPTION))
    figure = Figure(figsize=size, facecolor="white")
    figure.subplots_adjust(0.004, 0.005, 0.996, 1 - CAPTION / size[1], wspace=0.06, hspace=CAPTION / SIDE)
    for line, row in zip(figure.subplots(len(rows), len(rows[0]), squeeze=False), rows, strict=True):
        for axes, (title, picture) in zip(line, row, strict=True):
            axes.imshow(picture, interpolation="nearest")
            axes.set_title(fitted(title, SIDE, POINTS), fontsize=POINTS, parse_math=False, pad=2)
            axes.axis("off")
    return few_colours(png(figure, DPI))


def few_colours(content: bytes) -> bytes:
    """A PNG with a palette: less than half the bytes, and hardly another picture."""
    file, whole = io.BytesIO(), Image.open(io.BytesIO(content)).convert("RGB")
    whole.quantize(256, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE).save(file, "PNG", optimize=True)
    return file.getvalue()


def _row(image: Explained, answer: str, blocks: Sequence[int]) -> list[tuple[str, np.ndarray]]:
    pixels, patch = image.pixels, image.patch_size
    row = [
        (answer.strip(), pixels),
        ("rollout", heat(pixels, image.rollout, patch)),
        (f"for {image.of}", heat(pixels, image.weighted, patch)),
    ]
    if reduced(image):
        tokens = [(f"block {n}: {image.counts[n]} tokens", regions(pixels, image.tokens[n], patch)) for n in blocks]
        return [*row, *tokens]
    return [*row, *((f"block {n}", heat(pixels, image.taken[n], patch)) for n in blocks)]

"""Why a model says what it says of an image, as a picture: the image, its maps, and its tokens block by block."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mlx_peft.artifacts.explain import Explained
from mlx_peft.report.drawing import fitted, png
from mlx_peft.report.patches import heat, regions

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDE, LARGE, HEAD, DPI = 11.0, 2.7, 0.7, 120
"""Inches: of the picture, of the height of a large panel, and of what stands above it; dots an inch."""
STRIPS = {"taken": "what attention takes, block by block", "tokens": "the tokens that go through each block"}
KEY = {
    "taken": ("from the least of the image, dark,", "to the most of it, yellow"),
    "tokens": ("one colour in a white line: one token of them;", "dim: they go around the block, or past its MLP"),
}
"""What the colours of a strip mean, line by line."""
MOST, LEAST = 12, 4
"""Blocks in a strip, at most; and the number of panels that a strip has room for at least."""
POINTS, SMALL, TITLE = 9, 7.5, 11
"""The letters' sizes."""


def draw(explained: Explained, answers: Sequence[str], blocks: Sequence[int] | None = None) -> bytes:
    """An image's picture as PNG.

    Args:
        answers: what the model says of it, in a line for each answer, the likeliest first.
        blocks: which ones the strips have, counted from 0; None: all of them, or MOST evenly spread.
    """
    from matplotlib.figure import Figure

    chosen = spread(len(explained.tokens), MOST) if blocks is None else blocks
    strips = {"taken": [heat(explained.pixels, explained.taken[n], explained.patch_size) for n in chosen]}
    if reduced(explained):
        strips["tokens"] = [regions(explained.pixels, explained.tokens[n], explained.patch_size) for n in chosen]
    panels = max(len(chosen), LEAST)
    heights = [LARGE + HEAD, *[WIDE / panels + 0.5] * len(strips)]
    figure = Figure(figsize=(WIDE, sum(heights)), layout="constrained", facecolor="white")
    first, *rows = figure.subfigures(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
    title = f"{Path(explained.image).name}: {answers[0].strip()}"
    first.suptitle(fitted(title, 0.95 * WIDE, TITLE), fontsize=TITLE, parse_math=False)
    _large(first.subplots(1, 4), explained, answers, [line for name in strips for line in KEY[name]])
    for row, (name, pictures) in zip(rows, strips.items(), strict=True):
        row.suptitle(STRIPS[name], fontsize=POINTS, x=0.005, ha="left")
        headings = [_heading(name, n, explained) for n in chosen]
        _strip(row.subplots(1, panels), pictures, headings, WIDE / panels)
    return png(figure, DPI)


def reduced(explained: Explained) -> bool:
    """Whether in some block patches go around it, or are in other tokens than in the first."""
    return any((tokens < 0).any() or not np.array_equal(tokens, explained.tokens[0]) for tokens in explained.tokens)


def spread(depth: int, most: int) -> list[int]:
    """The numbers of so many blocks, evenly spread, the first and the last among them; of fewer all."""
    return sorted({round(n) for n in np.linspace(0, depth - 1, min(depth, most)).tolist()})


def _heading(strip: str, block: int, explained: Explained) -> str:
    return f"block {block}" if strip == "taken" else f"{explained.counts[block]} tokens"


def _large(panels: Sequence[Axes], explained: Explained, answers: Sequence[str], key: Sequence[str]) -> None:
    """The image, both maps, what the model says, and below it what the colours mean."""
    inches = 0.95 * WIDE / 4
    patch = explained.patch_size
    pictures = {
        "as the model sees it": explained.pixels,
        "attention rollout": heat(explained.pixels, explained.rollout, patch),
        f"in favour of {explained.of}": heat(explained.pixels, explained.weighted, patch),
    }
    for axes, (title, picture) in zip(panels, pictures.items(), strict=False):
        axes.imshow(picture, interpolation="nearest")
        axes.set_title(fitted(title, inches, POINTS), fontsize=POINTS, parse_math=False)
        axes.axis("off")
    panels[3].axis("off")
    look: dict[str, Any] = {"parse_math": False, "transform": panels[3].transAxes}
    for number, line in enumerate(answers):
        panels[3].text(0, 0.97 - 0.09 * number, fitted(line, inches, POINTS), fontsize=POINTS, va="top", **look)
    for number, line in enumerate(reversed(key)):
        panels[3].text(0, 0.02 + 0.07 * number, line, fontsize=SMALL, color="0.35", **look)


def _strip(panels: Sequence[Axes], pictures: Sequence[np.ndarray], headings: Sequence[str], inches: float) -> None:
    for axes in panels:
        axes.axis("off")
    for axes, picture, heading in zip(panels, pictures, headings, strict=False):
        axes.imshow(picture, interpolation="nearest")
        axes.set_title(fitted(heading, inches, SMALL), fontsize=SMALL)

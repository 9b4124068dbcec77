"""A sheet of the images that a model is shown."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from mlx_peft.core.text import printable
from mlx_peft.core.writing import disk_errors, write_whole
from mlx_peft.report.drawing import fitted, png
from mlx_peft.tasks.task import NONE
from mlx_peft.training.preview import Shown

POINTS = 7
"""The captions' letters have so many points."""


def draw(images: Sequence[Shown], path: Path) -> None:
    """Writes the images with their classes as PNG; a line of a caption is cut to its image's width.

    Raises UserError where the file cannot be written.
    """
    from matplotlib.figure import Figure

    columns = min(len(images), max(4, math.ceil(math.sqrt(len(images) * 1.5))))
    rows = math.ceil(len(images) / columns)
    side = max(1.5, images[0].pixels.shape[0] / 150)
    captions = ["\n".join(fitted(line, 0.92 * side, POINTS) for line in caption(image).split("\n")) for image in images]
    lines = 1 + max(text.count("\n") for text in captions)
    figure = Figure(figsize=(columns * side, rows * (side + 0.1 + 0.12 * lines)), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid:
        axes.axis("off")
    for axes, image, text in zip(grid, images, captions, strict=False):
        axes.imshow(image.pixels, interpolation="nearest")
        axes.set_title(text, fontsize=POINTS, parse_math=False)  # a name may have dollar signs
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, png(figure, 150))


def caption(image: Shown) -> str:
    """``cat``, or ``0.70 cat`` over ``0.30 dog``; with the weight where the image does not count as one.

    Of several classes that are all there the names alone; of none, so much.
    """
    whole = len(image.classes) == 1 or all(share == 1 for share in image.classes.values())
    shares = [(printable(name), share) for name, share in image.classes.items()]
    lines = [name if whole else f"{share:.2f} {name}" for name, share in shares] or [NONE]
    return "\n".join(lines) + ("" if abs(image.weight - 1) < 1e-3 else f"\nweight {image.weight:.2f}")

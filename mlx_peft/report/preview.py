"""A sheet of the images that a model is shown."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from mlx_peft.data.labels import NONE
from mlx_peft.engine.disk import disk_errors
from mlx_peft.engine.preview import Shown

LONGEST = 24
"""Letters of a class's name that a caption has room for."""


def draw(images: Sequence[Shown], path: Path) -> None:
    """Writes the images with their classes as PNG. Raises UserError where the file cannot be written."""
    from matplotlib.figure import Figure

    columns = min(len(images), max(4, math.ceil(math.sqrt(len(images) * 1.5))))
    rows = math.ceil(len(images) / columns)
    side = max(1.5, images[0].pixels.shape[0] / 150)
    figure = Figure(figsize=(columns * side, rows * (side + 0.35)), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid:
        axes.axis("off")
    for axes, image in zip(grid, images, strict=False):
        axes.imshow(image.pixels, interpolation="nearest")
        axes.set_title(caption(image), fontsize=7, parse_math=False)  # a name may have dollar signs
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150, metadata={"Software": None})


def caption(image: Shown) -> str:
    """``cat``, or ``0.70 cat`` over ``0.30 dog``; with the weight where the image does not count as one.

    Of several classes that are all there the names alone; of none, so much.
    """
    cut = [
        (name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…", share) for name, share in image.classes.items()
    ]
    whole = len(cut) == 1 or all(share == 1 for _, share in cut)
    lines = [name if whole else f"{share:.2f} {name}" for name, share in cut] or [NONE]
    return "\n".join(lines) + ("" if abs(image.weight - 1) < 1e-3 else f"\nweight {image.weight:.2f}")

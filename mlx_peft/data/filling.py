"""Some rows of a batch made and put into their places: what one thread does at a time, or one process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from mlx_peft.core.errors import UserError
from mlx_peft.data.dataset import ADVICE, Images
from mlx_peft.data.memory import one_image
from mlx_peft.data.rows import Rows

CHUNK = 8
"""So many rows are made at a time: few, so that all threads share a batch; not one, so that handing out is cheap."""


@dataclass(frozen=True, eq=False)
class Chunk:
    """Some rows of a batch.

    places: int64 ``(n,)``, where the images lie in ``images``; indices: which of the split's images they are; copies:
    which of their copies in the epoch. tolerant: whether an image that cannot be read is left out.
    """

    rows: Rows
    images: Images
    places: np.ndarray
    indices: np.ndarray
    copies: np.ndarray
    tolerant: bool


Fill = Callable[[Chunk, Sequence[np.ndarray]], list[str | None]]
"""As ``fill``: here, or elsewhere."""


def fill(chunk: Chunk, out: Sequence[np.ndarray]) -> list[str | None]:
    """Puts the rows in their places, uint8 ``(height, width, 3)`` each, and says of each why it is not there, if it is
    to be left out. Raises UserError at an image that cannot be read where none is left out."""
    reasons: list[str | None] = []
    numbers = zip(chunk.places.tolist(), chunk.indices.tolist(), chunk.copies.tolist(), out, strict=True)
    for place, index, copy, row in numbers:
        try:
            with one_image():
                _put(chunk.rows.row(chunk.images, place, index, copy), row)
        except UserError as error:
            if not chunk.tolerant:
                raise
            reasons.append(str(error).removesuffix(ADVICE))
        else:
            reasons.append(None)
    return reasons


def _put(row: np.ndarray, place: np.ndarray) -> None:
    if row.flags.c_contiguous:
        place[...] = row
    else:  # a flipped one: NumPy is quicker at it a channel at a time
        for channel in range(3):
            place[..., channel] = row[..., channel]

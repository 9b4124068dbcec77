"""A few images as another process is given them: what they are decoded of, or their pixels, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mlx_peft.core.errors import UserError


@dataclass(frozen=True, eq=False)
class Pixels:
    """Images of an array, uint8 ``(n, height, width)`` or ``(n, height, width, 3)``, with their names."""

    pixels: np.ndarray
    identifiers: Sequence[str]

    @property
    def stored_size(self) -> tuple[int, int]:
        return self.pixels.shape[1], self.pixels.shape[2]

    def __len__(self) -> int:
        return len(self.pixels)

    def take(self, rows: np.ndarray) -> Pixels:
        return Pixels(self.pixels[rows], [self.identifiers[row] for row in rows.tolist()])

    def read(self, index: int) -> np.ndarray:
        image: np.ndarray = self.pixels[index]
        return image if image.ndim == 3 else np.broadcast_to(image[..., None], (*image.shape, 3))

    def portable(self) -> Pixels:
        return self


@dataclass(frozen=True)
class Contents:
    """The bytes of some rows of a table, or why a row has none."""

    found: Mapping[int, bytes | UserError]

    @classmethod
    def of(cls, cell: Callable[[int], bytes], rows: Iterable[int]) -> Contents:
        """What a table says of the rows."""
        found: dict[int, bytes | UserError] = {}
        for row in rows:
            try:
                found[row] = cell(row)
            except UserError as error:
                found[row] = error
        return cls(found)

    def __call__(self, row: int) -> bytes:
        """Raises UserError where the table did."""
        content = self.found[row]
        if isinstance(content, UserError):
            raise content
        return content

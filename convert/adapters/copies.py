"""Projections that layers share, where PEFT adapts a whole qkv and a part of it is meant: a copy for each part.

Each copy of A has rows of its own, and so has lambda_d numbers; a copy of B stands in the part's rows, and in columns
of its own. Whole layers have one more copy of both, the last.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from convert.adapters.parts import adapted, gathered, spread
from mlx_peft.vit.sites import PARTS

Matrix = NDArray[np.float32]

WHOLE = "whole"
"""It stands for the layers that are adapted as wholes, beside q, k and v."""


def copied(targets: Collection[str]) -> tuple[str, ...]:
    """What has a copy to itself in PEFT's projections: each part, and whole layers together."""
    parts = adapted(targets)
    return parts if len(parts) == len(targets) else (*parts, WHOLE)


@dataclass(frozen=True)
class Copies:
    """The copies of one adapter.

    Attributes:
        names: of q, k and v, and whole.
        halves: how many times A has the rank of B, each with copies of its own.
    """

    names: tuple[str, ...]
    halves: int

    @property
    def count(self) -> int:
        """How many there are of A's, and of lambda_d's, rows."""
        return self.halves * len(self.names)

    def spread(self, d: Matrix, parts: tuple[str, ...]) -> Matrix:
        """The parts' lambda_d ``(parts halves r,)`` as PEFT's ``(halves copies r,)``; 0 for the others."""
        halves = d.reshape(len(parts), self.halves, -1).swapaxes(0, 1)
        return np.concatenate([spread(half, parts, 0, self.names) for half in halves])

    def gathered(self, d: Matrix, parts: tuple[str, ...]) -> Matrix:
        """The inverse of ``spread``. Raises ValueError where it is not one of so many copies, or others are not 0."""
        if d.ndim != 1 or d.size % self.count:
            raise ValueError(
                f"a lambda_d of {self.count} parts should be a vector of as many equal parts, not {d.shape}"
            )
        own = [gathered(half, parts, 0, self.names).reshape(len(parts), -1) for half in np.split(d, self.halves)]
        return np.stack(own, axis=1).ravel()

    def stacked(self, A: Matrix, B: Matrix, outputs: Mapping[str, int]) -> tuple[Matrix, Matrix]:
        """PEFT's projections, for layers with so many outputs."""
        rank = B.shape[1]
        placed = np.zeros((max(outputs.values()), rank * len(self.names)), np.float32)
        for index, place in enumerate(self._rows(outputs)):
            placed[place, index * rank : (index + 1) * rank] = B[: place.stop - place.start]
        halves = [np.tile(half, (len(self.names), 1)) for half in np.split(A, self.halves)]
        return np.concatenate(halves), placed

    def taken(self, A: Matrix, B: Matrix, outputs: Mapping[str, int]) -> tuple[Matrix, Matrix]:
        """The A and B that ``stacked`` was given: the last copy is all of B."""
        rank = B.shape[1] // len(self.names)
        own = np.concatenate([half[:rank] for half in np.split(A, self.halves)])
        return own, B[self._rows(outputs)[-1], (len(self.names) - 1) * rank :]

    def _rows(self, outputs: Mapping[str, int]) -> list[slice]:
        """Which rows of PEFT's B hold each copy: a part's own, or as many as the largest layer or part has."""
        if self.names == (WHOLE,):
            return [slice(0, max(outputs.values()))]
        dim = qkv(outputs) // len(PARTS)
        largest = max(dim, *(count for layer, count in outputs.items() if not layer.endswith(".qkv")), 0)
        starts = [PARTS.index(name) * dim for name in self.names if name != WHOLE]
        return [slice(start, start + dim) for start in starts] + [slice(0, largest)] * (WHOLE in self.names)


def qkv(outputs: Mapping[str, int]) -> int:
    """The outputs of a qkv; 0 where there is none."""
    return max((count for layer, count in outputs.items() if layer.endswith(".qkv")), default=0)

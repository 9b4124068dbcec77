"""A batch whose rows have adapters of their own: one layer that holds those of several, and which row has which."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from mlx_peft.core.text import counted
from torch_ref.methods.adapted import Adapted, Terms

_assigned: list[Tensor] = []


@contextmanager
def assigned(rows: Tensor) -> Iterator[None]:
    """Within it, row i of a batch has the adapter ``rows[i]`` of each ``Stacked``.

    Args:
        rows: int32 ``(batch,)``, as ``mlx_peft.adaptation.rows.assignment`` makes it. A compiled function takes it as
            an argument, so that another assignment compiles nothing.
    """
    _assigned.append(rows)
    try:
        yield
    finally:
        _assigned.pop()


class Stacked(Adapted):
    """y_i = gain_k * (layer(into_k * x_i) + B_k A_k x_i) + shift_k for row i of a batch, k = rows[i].

    What ``Terms`` of K adapters has is held stacked: A ``(K + 1, in, r)`` and B ``(K + 1, r, out)``, transposed and
    filled up with zeros to the largest rank; vectors ``(K + 1, width)``. The last of each changes nothing: it is for
    rows without an adapter. Outside of ``assigned`` no row has one. Nothing of it is trained. An input that all images
    share, one row, gets a row for each.

    Args:
        base_layer: the layer; it is kept as ``base_layer``.
        adapters: each one's terms; None for one that has nothing at this layer.
    """

    @torch.no_grad()
    def __init__(self, base_layer: nn.Module, adapters: Sequence[Terms | None]):
        super().__init__(base_layer)
        terms = [*(Terms() if adapter is None else adapter for adapter in adapters), Terms()]
        self.A = padded([t.A if t.A is None else t.A.T for t in terms])
        self.B = padded([t.B if t.B is None else t.B.T for t in terms])
        self.into = padded([t.into for t in terms], fill=1.0)
        self.gain = padded([t.gain for t in terms], fill=1.0)
        self.shift = padded([t.shift for t in terms])
        self.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        if not _assigned:
            return self.base_layer(x)
        rows, dtype = _assigned[-1], x.dtype
        if len(x) not in (1, len(rows)):
            raise ValueError(f"an adapter each for {counted(len(rows), 'row')}, and the layer's input has {len(x)}")
        y = self.base_layer(x if self.into is None else (x * beside(self.into[rows], x)).to(dtype))
        if self.A is not None:
            y = torch.baddbmm(y, x @ self.A[rows].to(dtype), self.B[rows].to(dtype))
        if self.gain is not None:
            y = y * beside(self.gain[rows], y)
        if self.shift is not None:
            y = y + beside(self.shift[rows], y)
        return y.to(dtype)


def padded(arrays: Sequence[Tensor | None], fill: float = 0.0) -> nn.Parameter | None:
    """Arrays as one, each filled up at its ends to the largest; ``fill`` alone for None. None where there is none."""
    found = [array for array in arrays if array is not None]
    if not found:
        return None
    shape = [max(sizes) for sizes in zip(*(array.shape for array in found), strict=True)]
    stacked = found[0].new_full((len(arrays), *shape), fill)
    for index, array in enumerate(arrays):
        if array is not None:
            stacked[(index, *(slice(size) for size in array.shape))] = array
    return nn.Parameter(stacked, requires_grad=False)


def beside(vectors: Tensor, x: Tensor) -> Tensor:
    """A vector a row, ``(batch, width)``, with as many axes as x, ``(batch, ..., width)``."""
    return vectors.reshape(len(vectors), *(1,) * (x.ndim - 2), -1)

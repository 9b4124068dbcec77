"""Where the numbers of a rotation stand, in NumPy, so that both backends build the same matrices of them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def skew_places(size: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """How a vector of size (size - 1) / 2 numbers fills a skew-symmetric matrix: which number is where, and its sign.

    The numbers fill what is above the diagonal row by row; below it they stand mirrored, with the other sign.

    Returns:
        Indices and signs, both ``(size, size)``; the signs on the diagonal are 0.
    """
    rows, columns = np.triu_indices(size, 1)
    index, sign = np.zeros((size, size), np.int32), np.zeros((size, size), np.float32)
    index[rows, columns] = index[columns, rows] = np.arange(len(rows))
    sign[rows, columns], sign[columns, rows] = 1, -1
    return index, sign


def butterflies(width: int, size: int, factors: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """How BOFT's factors permute a layer's inputs before blocks of a ``size`` are turned, and back, as PEFT does it.

    The i-th, from 0 on, brings the even half blocks of each 2^i blocks before the odd ones. One factor alone moves
    nothing.

    Returns:
        Where each input comes from on the way there, and on the way back, ``(factors, width)`` both.
    """
    back = np.tile(np.arange(width, dtype=np.int32), (factors, 1))
    if factors > 1:
        for i, order in enumerate(back):
            halves = order.reshape(-1, 2 ** (i + 1), size // 2)
            back[i] = np.concatenate([halves[:, ::2], halves[:, 1::2]], axis=1).ravel()
    return np.argsort(back, axis=1).astype(np.int32), back

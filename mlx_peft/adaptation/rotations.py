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

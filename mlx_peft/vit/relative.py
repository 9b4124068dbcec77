"""Relative positions as arithmetic: which number of a table is added to the score of which two tokens.

A block's table has a row for each way in which one patch can stand to another, and three more for the class token; a
column for each head. Bao et al. 2021 (arXiv 2106.08254), with the table of Swin (Liu et al. 2021, arXiv 2103.14030).
"""

from __future__ import annotations

from math import isqrt

import numpy as np
from numpy.typing import NDArray

from mlx_peft.vit.architecture import Architecture

TABLE = "relative_position_bias_table"
"""The last name of a table."""

OF_CLASS = 3
"""The rows behind those of patches: of what the class token asks of a patch, a patch of it, and it of itself."""


def table_shape(architecture: Architecture) -> tuple[int, int]:
    """``((2 grid - 1)^2 + 3, heads)``."""
    return rows_of(architecture.grid_size), architecture.num_heads


def rows_of(grid: int) -> int:
    """How many rows a table has for so many patches along a side."""
    return (2 * grid - 1) ** 2 + OF_CLASS


def grid_of(rows: int) -> int | None:
    """For how many patches along a side a table has so many rows; None where there is no such grid."""
    grid = (isqrt(max(rows - OF_CLASS, 0)) + 1) // 2
    return grid if grid and rows_of(grid) == rows else None


def rows(grid: int) -> NDArray[np.int64]:
    """The row for each token that asks and each that is asked, ``(grid^2 + 2, grid^2 + 2)``.

    Token 0 is the class token, 1 to grid^2 are the patches, row by row, and the last is any other, which has no place:
    with it, it is the row behind the table's last, which is to be zero. A patch at (y, x) asks one at (v, u) by row
    (y - v + grid - 1) (2 grid - 1) + x - u + grid - 1.
    """
    y, x = np.divmod(np.arange(grid**2), grid)
    found = np.full((grid**2 + 2, grid**2 + 2), rows_of(grid))
    away = (y[:, None] - y + grid - 1) * (2 * grid - 1) + x[:, None] - x + grid - 1
    found[1:-1, 1:-1] = away
    found[0, 1:-1], found[1:-1, 0], found[0, 0] = (rows_of(grid) - OF_CLASS + np.arange(OF_CLASS)).tolist()
    return found


def resize_table(table: np.ndarray, grid: int) -> np.ndarray:
    """A table ``(rows, heads)`` for so many patches along a side, as timm and BEiT's own code resize it.

    The known distances are spread over the new ones in steps that grow geometrically, so that those between near
    patches stay nearly what they were, and between them it is linear. The class token's rows stay.
    """
    side = isqrt(len(table) - OF_CLASS)
    matrix = _spread(side, 2 * grid - 1)
    patches = table[:-OF_CLASS].reshape(side, side, -1).astype(np.float64)
    resized = np.einsum("ay,bx,yxh->abh", matrix, matrix, patches).reshape((2 * grid - 1) ** 2, -1)
    return np.concatenate([resized.astype(np.float32), table[-OF_CLASS:]])


def _spread(source: int, target: int) -> NDArray[np.float64]:
    """The matrix ``(target, source)`` that resizes one axis of distances; both sides are odd."""
    at = _distances(source, target)
    wanted = np.arange(target) - target // 2
    right = np.minimum(np.searchsorted(at, wanted), source - 1)
    left = np.maximum(right - 1, 0)
    before, behind = np.maximum(wanted - at[left], 0), np.maximum(at[right] - wanted, 0)
    before, behind = (np.where(before + behind == 0, 1, one) for one in (before, behind))
    matrix = np.zeros((target, source))
    rows = np.arange(target)
    np.add.at(matrix, (rows, left), behind / (before + behind))
    np.add.at(matrix, (rows, right), before / (before + behind))
    return matrix


def _distances(source: int, target: int) -> NDArray[np.float64]:
    """Where the known distances come to stand: 0, +-1, +-(1 + q), +-(1 + q + q^2), ...; the last is the target's.

    q is found by bisection between 1.01 and 1.5, to 1e-6, as BEiT's code does it: it is what is left of the interval.
    """
    half, left, right, q = source // 2, 1.01, 1.5, 1.01
    while right - left > 1e-6:
        q = (left + right) / 2
        if (1 - q**half) / (1 - q) > target // 2:
            right = q
        else:
            left = q
    steps = np.cumsum(q ** np.arange(half))
    return np.concatenate([-steps[::-1], [0.0], steps])

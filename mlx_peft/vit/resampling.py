"""What ``bilinear`` and ``bicubic`` mean for an image: the weights of Pillow's antialiased filters."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def triangle(x: NDArray[np.float64], _: float) -> NDArray[np.float64]:
    return np.asarray(np.maximum(1 - np.abs(x), 0))


def cubic(x: NDArray[np.float64], a: float) -> NDArray[np.float64]:
    """Keys 1981, "Cubic convolution interpolation for digital image processing"."""
    x = np.abs(x)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = a * (((x - 5) * x + 8) * x - 4)
    return np.where(x < 1, near, np.where(x < 2, far, 0))


KERNELS = {"bilinear": (triangle, 1), "bicubic": (cubic, 2)}
"""The kernel of each interpolation, and how far it reaches on either side."""


def pillow_weights(source: int, target: int, interpolation: str, bits: int | None = None) -> NDArray[np.float64]:
    """The matrix ``(target, source)`` that resizes one axis, float64; each row adds up to 1.

    The filter widens with the reduction (bicubic with a = -0.5). With `bits` the weights are whole numbers with so many
    bits after the point, rounded as Pillow does, which has 22: times 2^bits, so that rows add up to about that.
    """
    kernel, reach = KERNELS[interpolation]
    rows, columns = np.arange(target)[:, None], np.arange(source)
    scale = source / target
    width = max(scale, 1.0)
    centre = (rows + 0.5) * scale
    first = np.floor(np.maximum(centre - reach * width + 0.5, 0))
    last = np.floor(np.minimum(centre + reach * width + 0.5, source))
    weights = np.where((columns >= first) & (columns < last), kernel((columns + 0.5 - centre) / width, -0.5), 0)
    weights = weights / weights.sum(1, keepdims=True)
    if bits is None:
        return np.asarray(weights)
    return np.asarray(np.copysign(np.floor(np.abs(weights) * 2**bits + 0.5), weights))

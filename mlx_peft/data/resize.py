"""A box of an image resized to a square, about twice as fast as by Pillow: sparse matrix products over whole rows.

Pillow's antialiased filters with weights of 15 bits after the point in place of 22. A level is 8 bits, so that each sum
is exact in float32, whatever the order in which a processor takes it: every machine has the same pixels. They differ
from Pillow's by one level here and there.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from scipy import sparse

from mlx_peft.config.resampling import pillow_weights

BITS = 15


def crop_and_resize(image: np.ndarray, box: tuple[int, int, int, int], size: int, interpolation: str) -> np.ndarray:
    """A box (top, left, height, width) of a uint8 ``(h, w, 3)`` image as uint8 ``(size, size, 3)``, rows first."""
    top, left, height, width = box
    window = image[top : top + height, left : left + width]
    if width != size:
        window = turned(_resized(turned(window), size, interpolation))
    if height != size:
        window = _resized(window, size, interpolation)
    return window


def turned(image: np.ndarray) -> np.ndarray:
    """Rows for columns, uint8 ``(h, w, 3)`` to ``(w, h, 3)``, contiguous: pixels are moved whole, which is quick."""
    pixels = image if image.strides[1:] == (3, 1) else np.ascontiguousarray(image)
    whole = np.ascontiguousarray(pixels.view("V3")[..., 0].T)
    return whole.view(np.uint8).reshape(image.shape[1], image.shape[0], 3)


def _resized(image: np.ndarray, size: int, interpolation: str) -> np.ndarray:
    """The first axis resized: to whole levels of 0..255, halves upwards."""
    rows = image.reshape(len(image), -1).astype(np.float32)
    levels = _matrix(len(image), size, interpolation) @ rows
    levels += 0.5
    np.clip(levels, 0, 255.5, out=levels)
    whole: np.ndarray = levels.astype(np.uint8)
    return whole.reshape(size, *image.shape[1:])


@lru_cache(maxsize=4096)
def _matrix(source: int, target: int, interpolation: str) -> sparse.csr_matrix:
    weights = pillow_weights(source, target, interpolation, BITS)
    return sparse.csr_matrix((weights / 2**BITS).astype(np.float32))

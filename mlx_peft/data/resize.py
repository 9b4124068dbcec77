"""A box of an image resized to a square by Pillow's antialiased filters in 16-bit arithmetic, columns before rows.

Weights are whole numbers of at most 15 bits, in place of Pillow's 22, and what lies between the passes is rounded to
levels. cykooz.resizer does that with the processor's vector instructions; where it is not installed, sparse matrix
products of whole numbers give the very same pixels, several times slower.
"""

from __future__ import annotations

import threading
from functools import cache, lru_cache
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from mlx_peft.vit.resampling import pillow_weights

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

BITS = 15
"""A weight has so many bits: the largest is less than 2^15."""

MOST_BITS = 21
"""A weight has at most so many bits after the point: weights that are all small have more, so that their sum still fits
32 bits."""

_FILTERS = {"bilinear": "bilinear", "bicubic": "catmull_rom"}


class _Tools(threading.local):
    """A thread's resizers, each with its options and the memory of its result: one serves a single thread at a time."""

    def __init__(self) -> None:
        self.made: dict[tuple[int, str], Any] = {}


_tools = _Tools()


def crop_and_resize(image: np.ndarray, box: tuple[int, int, int, int], size: int, interpolation: str) -> np.ndarray:
    """A box (top, left, height, width) of a uint8 ``(h, w, 3)`` image as uint8 ``(size, size, 3)``; may be read-only.

    The same on every machine. Within a level or two of Pillow's, but where bicubic overshoots: Pillow cuts off what is
    beyond black and white after each pass too, and takes the rows first.
    """
    top, left, height, width = box
    window = image[top : top + height, left : left + width]
    library = _cykooz()
    return (
        _by_products(window, size, interpolation) if library is None else _quickly(library, window, size, interpolation)
    )


def _quickly(library: ModuleType, window: np.ndarray, size: int, interpolation: str) -> np.ndarray:
    if (size, interpolation) not in _tools.made:
        algorithm = library.ResizeAlg.convolution(library.FilterType[_FILTERS[interpolation]])
        _tools.made[size, interpolation] = (
            library.Resizer(),
            library.ImageData(size, size, library.PixelType.U8x3),
            library.ResizeOptions(algorithm, use_alpha=False),
        )
    resizer, resized, options = _tools.made[size, interpolation]
    height, width = window.shape[:2]
    resizer.resize(library.ImageData(width, height, library.PixelType.U8x3, window.tobytes()), resized, options)
    return np.frombuffer(resized.get_buffer(), np.uint8).reshape(size, size, 3)


def _by_products(window: np.ndarray, size: int, interpolation: str) -> np.ndarray:
    height, width = window.shape[:2]
    if height != size:
        window = _product(height, size, interpolation, window)
    if width != size:
        window = _product(width, size, interpolation, window.transpose(1, 0, 2)).transpose(1, 0, 2)
    return window


def _product(source: int, target: int, interpolation: str, image: np.ndarray) -> np.ndarray:
    """The first axis resized, to whole levels of 0..255, halves upwards."""
    matrix, bits = _matrix(source, target, interpolation)
    sums = matrix @ image.reshape(source, -1).astype(np.int32) + (1 << bits - 1)
    levels: np.ndarray = np.clip(sums >> bits, 0, 255).astype(np.uint8)
    return levels.reshape(target, *image.shape[1:])


@lru_cache(maxsize=256)
def _matrix(source: int, target: int, interpolation: str) -> tuple[csr_matrix, int]:
    """Weights as whole numbers, and how many of their bits are after the point."""
    from scipy.sparse import csr_matrix  # needed only where cykooz.resizer is missing

    largest = pillow_weights(source, target, interpolation).max()
    bits = next(
        bits for bits in range(MOST_BITS + 1) if bits == MOST_BITS or round(largest * 2 ** (bits + 1)) >= 2**BITS
    )
    return csr_matrix(pillow_weights(source, target, interpolation, bits).astype(np.int32)), bits


@cache
def _cykooz() -> Any:
    try:
        import cykooz_resizer
    except ImportError:
        return None
    return cykooz_resizer

"""VeRA's shared random projections, drawn in NumPy exactly as PEFT draws them with torch: bit for bit, from one key."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray


def projections(key: int, rank: int, inputs: int, outputs: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """A ``(rank, inputs)`` and B ``(outputs, rank)``, float32: both Kaiming uniform, one after the other of one stream.

    torch's generator is the Mersenne twister, seeded by the key's lower 32 bits, as NumPy's ``RandomState`` is.
    """
    stream = np.random.RandomState(key & 0xFFFFFFFF)
    return _kaiming((rank, inputs), stream), _kaiming((outputs, rank), stream)


def _kaiming(shape: tuple[int, int], stream: np.random.RandomState) -> NDArray[np.float32]:
    """U(-b, b), b = sqrt(6 / columns). torch takes 24 bits a draw, and multiplies in float64."""
    bits = stream.randint(0, 2**32, shape, dtype=np.uint32) & 0xFFFFFF
    bound = math.sqrt(3.0) * (math.sqrt(2.0) / math.sqrt(shape[1]))
    low, high = np.float32(-bound), np.float32(bound)
    values: NDArray[np.float64] = bits * 2.0**-24 * np.float64(high - low) + np.float64(low)
    return values.astype(np.float32)

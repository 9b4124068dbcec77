"""Random matrices that all layers share, drawn from a key in NumPy as PEFT draws them with torch: bit for bit."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mlx_peft.config.methods import RandLoRA

Matrix = NDArray[np.float32]

SPARSE = 3.0
"""Of sparse bases one number in so many is not 0."""


def projections(key: int, rank: int, inputs: int, outputs: int, halves: int = 1) -> tuple[Matrix, Matrix]:
    """A ``(halves rank, inputs)`` and B ``(outputs, rank)``, float32: both Kaiming uniform, one after the other."""
    stream = _stream(key)
    return _kaiming((halves * rank, inputs), stream), _kaiming((outputs, rank), stream)


def bases(method: RandLoRA, width: int, height: int) -> tuple[Matrix, Matrix]:
    """RandLoRA's A ``(r, 1, width)`` and B ``(height, n, r)``, float32, each of standard deviation 1.

    PEFT draws uniform ones, and divides them by their deviation, in bfloat16.
    """
    stream, rank, count = _stream(method.projection_key), method.rank, method.count(width)
    if method.bases == "uniform":
        A = _draws_in_half((rank, 1, width), stream)
        B = np.concatenate([_draws_in_half((height, 1, rank), stream) for _ in range(count)], axis=1)
        return _divided_in_half(A), _divided_in_half(B)
    one_in = SPARSE if method.bases == "sparse" else math.sqrt(width)
    A, B = _signs((rank, 1, width), one_in, stream), _signs((height, count, rank), one_in, stream)
    return _divided(A), _divided(B)


def _stream(key: int) -> np.random.RandomState:
    """torch's generator is the Mersenne twister, seeded by the key's lower 32 bits, as NumPy's ``RandomState`` is."""
    return np.random.RandomState(key & 0xFFFFFFFF)


def _uniform(shape: tuple[int, ...], stream: np.random.RandomState) -> NDArray[np.float64]:
    """U(0, 1). torch takes 24 bits a draw."""
    bits = stream.randint(0, 2**32, shape, dtype=np.uint32) & 0xFFFFFF
    values: NDArray[np.float64] = np.multiply(bits, 2.0**-24, dtype=np.float64)
    return values


def _kaiming(shape: tuple[int, ...], stream: np.random.RandomState, slope: float = 0.0) -> Matrix:
    """U(-b, b), b = sqrt(6 / (1 + slope^2) / columns). torch multiplies in float64."""
    bound = _bound(shape[-1], slope)
    low, high = np.float32(-bound), np.float32(bound)
    values: Matrix = (_uniform(shape, stream) * float(high - low) + float(low)).astype(np.float32)
    return values


def _bound(columns: int, slope: float) -> float:
    return math.sqrt(3.0) * (math.sqrt(2.0 / (1 + slope**2)) / math.sqrt(columns))


def _draws_in_half(shape: tuple[int, ...], stream: np.random.RandomState) -> Matrix:
    """As ``_kaiming``, with slope sqrt(5), in bfloat16: what would be rounded up to b is -b to torch."""
    slope = math.sqrt(5)
    drawn, bound = _bfloat16(_kaiming(shape, stream, slope)), _bfloat16(_bound(shape[-1], slope))
    wrapped: Matrix = np.where(drawn >= bound, -bound, drawn)
    return wrapped


def _signs(shape: tuple[int, ...], one_in: float, stream: np.random.RandomState) -> Matrix:
    """-1, 0 and 1, of which one in so many is not 0."""
    drawn, end = _uniform(shape, stream).astype(np.float32), 1 / (2 * one_in)
    signs: Matrix = (drawn > np.float32(1 - end)).astype(np.float32) - (drawn < np.float32(end))
    return signs


def _deviation(values: Matrix) -> float:
    return float(values.std(ddof=1, dtype=np.float64))


def _divided(values: Matrix) -> Matrix:
    divided: Matrix = values / np.float32(_deviation(values))
    return divided


def _divided_in_half(values: Matrix) -> Matrix:
    return _bfloat16(values / _bfloat16(_deviation(values)))


def _bfloat16(values: ArrayLike) -> Matrix:
    """Float32 rounded to 8 bits of mantissa, to the nearest, of two that are as near to the even one."""
    bits = np.asarray(values, np.float32).view(np.uint32)
    rounded: Matrix = ((bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)).view(np.float32)
    return rounded

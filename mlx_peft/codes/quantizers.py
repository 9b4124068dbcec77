"""Quantisers of weights and activations in NumPy; a backend computes the same in ``quant/simulated.py``.

All is float32, and x / scale is x times the float32 nearest to 1 / scale, as in PyTorch's fake quantisation, so that
every backend rounds the same numbers to the same codes. Ties go to even.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

TINY = 1e-12
"""No scale is smaller: what it divides is zero, or as good as."""


@dataclass(frozen=True)
class Codes:
    """What all quantisers have.

    Attributes:
        scale: a float32 number.
        bits: of a code.
    """

    scale: float
    bits: int

    @property
    def top(self) -> int:
        """The largest code."""
        return (1 << self.bits) - 1

    @property
    def inverse(self) -> float:
        """The float32 number nearest to 1 / scale."""
        return float(np.float32(1) / np.float32(self.scale))


@dataclass(frozen=True)
class Uniform(Codes):
    """Integers: code = clip(rint(x / scale) + zero_point, 0, 2^bits - 1), which stands for (code - zero_point) scale.

    Attributes:
        zero_point: the code of zero; it may lie outside of the codes that there are.
    """

    zero_point: int

    @classmethod
    def over(cls, low: float, high: float, bits: int) -> Uniform:
        """The quantiser of a range, widened to hold zero, which then has a code of its own.

        scale = (high - low) / (2^bits - 1) and zero_point = rint(-low / scale).
        """
        low, high = min(low, 0.0), max(high, 0.0)
        scale = single((high - low) / (2**bits - 1))
        return cls(scale, bits, int(np.rint(-low / scale)))

    def codes(self, x: np.ndarray) -> Array:
        """The codes of float32 numbers."""
        steps = np.rint(np.asarray(x, np.float32) * np.float32(self.inverse))
        codes: Array = np.clip(steps + np.float32(self.zero_point), 0, self.top)
        return codes

    def __call__(self, x: np.ndarray) -> Array:
        """What the codes of float32 numbers stand for."""
        values: Array = (self.codes(x) - np.float32(self.zero_point)) * np.float32(self.scale)
        return values


@dataclass(frozen=True)
class LogSqrt2(Codes):
    """Codes for probabilities, which are many and small: code = clip(rint(-2 log2(x / scale)), 0, 2^bits - 1).

    A code stands for scale sqrt(2)^-code = scale (1 + [code is odd] (sqrt(2) - 1)) 2^floor(-code / 2): a shift, and one
    of two scales (RepQ-ViT, Li et al. 2023, arXiv 2212.08254, section 3.4).
    """

    @classmethod
    def up_to(cls, high: float, bits: int) -> LogSqrt2:
        """The quantiser of the range from 0 to ``high``."""
        return cls(single(high), bits)

    @cached_property
    def levels(self) -> Array:
        """What each code stands for, ``(2^bits,)``."""
        codes = np.arange(2**self.bits)
        scales = self.scale * np.where(codes % 2 == 1, np.sqrt(2), 1.0)
        return np.asarray(np.ldexp(scales, -((codes + 1) // 2)), np.float32)

    def codes(self, x: np.ndarray) -> Array:
        """The codes of float32 numbers that are not negative."""
        with np.errstate(divide="ignore"):  # zero has the last code
            steps = np.rint(np.float32(-2) * np.log2(np.asarray(x, np.float32) * np.float32(self.inverse)))
        codes: Array = np.clip(steps, 0, self.top)
        return codes

    def __call__(self, x: np.ndarray) -> Array:
        """What the codes of float32 numbers stand for."""
        values: Array = self.levels[self.codes(x).astype(np.intp)]
        return values


Quantizer = Uniform | LogSqrt2


def single(scale: float) -> float:
    """A scale as float32 has it, TINY at least."""
    return float(np.float32(max(scale, TINY)))


def rounded_weight(weight: Array, bits: int, ratios: Sequence[float] = (1.0,)) -> Array:
    """The weight ``(out, in)`` that symmetric codes stand for: code = rint(w / scale), |code| <= 2^(bits - 1) - 1.

    An output has the scale max |w| / (2^(bits - 1) - 1), times that of the ratios which gives the least squared error.
    """
    top = 2 ** (bits - 1) - 1
    widest = np.maximum(np.abs(weight).max(axis=1, keepdims=True) / np.float32(top), np.float32(TINY))
    best, least = weight, np.full((len(weight), 1), np.inf)
    for ratio in ratios:
        scales = widest * np.float32(ratio)
        values: Array = np.clip(np.rint(weight * (np.float32(1) / scales)), -top, top) * scales
        error = np.square(values - weight, dtype=np.float64).sum(axis=1, keepdims=True)
        best, least = np.where(error < least, values, best), np.minimum(error, least)
    return best

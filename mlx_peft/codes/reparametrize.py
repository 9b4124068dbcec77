"""RepQ-ViT's reparametrisation: a quantiser for each channel of a LayerNorm's output, made one for all by the weights.

With scales s and zero points z of the channels, s' and z' their means, r = s / s' and t = s (z - z'), the norm gives
x' = (x + t) / r instead of x: gamma / r and (beta + t) / r. The layers that read it take r W and b - W t, so their
products are what they were. Quantising x' with (s', z') is quantising each channel of x with its own s and z. Li et al.
2023 (arXiv 2212.08254), section 3.3; here z' is rounded, so that it stays a code, and t takes up the difference.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mlx_peft.codes.quantizers import Uniform, single
from mlx_peft.core.border import Tensors

FLATTEST = 1e-3
"""A channel's scale is at least this share of the mean of all: one that hardly varies must not magnify rounding."""


@dataclass(frozen=True)
class Reparametrization:
    """What a norm's output becomes, x' = (x + shift) / ratio by channel, float64 ``(dim,)`` each, and its quantiser."""

    ratio: np.ndarray
    shift: np.ndarray
    quantizer: Uniform

    @classmethod
    def of(cls, low: np.ndarray, high: np.ndarray, bits: int) -> Reparametrization:
        """From the extremes of each channel, ``(dim,)``: s = (high - low) / (2^bits - 1) and z = rint(-low / s)."""
        low, high = low.astype(np.float64), high.astype(np.float64)
        scales = (high - low) / (2**bits - 1)
        scales = np.maximum(scales, single(FLATTEST * scales.mean()))
        zero_points = np.rint(-low / scales)
        quantizer = Uniform(single(scales.mean()), bits, int(np.rint(zero_points.mean())))
        return cls(scales / quantizer.scale, scales * (zero_points - quantizer.zero_point), quantizer)

    def applied(self, x: np.ndarray) -> np.ndarray:
        """x' of x, ``(..., dim)``."""
        changed: np.ndarray = (x + self.shift) / self.ratio
        return changed

    def undone(self, x: np.ndarray) -> np.ndarray:
        """x of x'."""
        changed: np.ndarray = x * self.ratio - self.shift
        return changed

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """What the codes of x, each channel's with its own scale and zero point, stand for."""
        return self.undone(self.quantizer(self.applied(x)))

    def absorbed(self, tensors: Tensors, norm: str, layers: Sequence[str]) -> Tensors:
        """timm's state dictionary with x' in the place of x between a norm and the layers that read it.

        Args:
            norm: its path, ``blocks.0.norm1``: a LayerNorm with gamma and beta.
            layers: their paths; each has a bias.
        """
        changed = dict(tensors)

        def put(name: str, value: np.ndarray) -> None:
            changed[name] = value.astype(np.float32)

        put(f"{norm}.weight", tensors[f"{norm}.weight"] / self.ratio)
        put(f"{norm}.bias", (tensors[f"{norm}.bias"] + self.shift) / self.ratio)
        for layer in layers:
            weight = tensors[f"{layer}.weight"].astype(np.float64)
            put(f"{layer}.weight", weight * self.ratio)
            put(f"{layer}.bias", tensors[f"{layer}.bias"] - weight @ self.shift)
        return changed

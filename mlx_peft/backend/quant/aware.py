"""Quantisation-aware training: a weight is multiplied as the codes that it is to become, and trained as if it were not.

y = x Q(W)^T + b, where W has the method's update in it and Q(W) = scale * code + bias is what will be stored, in
float32. The gradient passes Q as if it were the identity (Bengio et al. 2013, arXiv 1308.3432, section 4).

``AwareLayer``: scales and biases are those of ``affine.quantize``, from each group's extremes.
``LearnedLayer``: a group is symmetric about zero, and its scale s is trained: code = clip(rint(w / s), -n, p) + n, bias
= -n s, with n = 2^(bits-1) and p = n - 1. For a weight inside the range, dQ/dw = 1 and dQ/ds = rint(w / s) - w / s;
outside, dQ/dw = 0 and dQ/ds = -n or p. The gradient of s is divided by sqrt(g p), g weights sharing it; initially s =
2 mean|w| / sqrt(p). Esser et al. 2020 (arXiv 1902.08153), sections 2.1 and 2.2, with a scale for each group.
"""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_peft.backend.models.layers import spread
from mlx_peft.backend.quant.affine import QuantizedLinear, dequantize, quantize
from mlx_peft.codes.affine import packed
from mlx_peft.config.quantization import QAT

SMALLEST = 1e-7
"""A scale is at least this, as in ``affine.quantize``."""


def straight_through(weight: mx.array, bits: int, group_size: int) -> mx.array:
    """The weight ``(out, in)`` that its codes stand for, float32; its gradient is the weight's."""

    @mx.custom_function
    def rounded(weight: mx.array) -> mx.array:
        return dequantize(*quantize(weight, bits, group_size), bits, group_size)

    @rounded.vjp
    def rounded_vjp(_, cotangent, __):  # type: ignore[no-untyped-def]
        return cotangent

    return rounded(weight)


def bounds(bits: int) -> tuple[int, int]:
    """n and p: how many steps below and above zero a symmetric code reaches."""
    return 2 ** (bits - 1), 2 ** (bits - 1) - 1


def initial_scale(weight: mx.array, bits: int, group_size: int) -> mx.array:
    """s at the start, float32 ``(out, in / g)``."""
    groups = weight.reshape(weight.shape[0], -1, group_size)
    return mx.maximum(2 * mx.abs(groups).mean(axis=2) / bounds(bits)[1] ** 0.5, SMALLEST)


def symmetric_codes(weight: mx.array, scale: mx.array, bits: int) -> mx.array:
    """Codes from 0 on, as float32 ``(out, in / g, g)``."""
    low, high = bounds(bits)
    groups = weight.reshape(*scale.shape, -1)
    return mx.clip(mx.round(groups / mx.maximum(scale, SMALLEST)[..., None]), -low, high) + low


def learned_step(weight: mx.array, scale: mx.array, bits: int) -> mx.array:
    """The weight ``(out, in)`` that its codes stand for, float32, with gradients for it and for the scale."""
    low, high = bounds(bits)

    @mx.custom_function
    def rounded(weight: mx.array, scale: mx.array) -> mx.array:
        s = mx.maximum(scale, SMALLEST)[..., None]
        return (symmetric_codes(weight, scale, bits) * s - low * s).reshape(weight.shape)

    @rounded.vjp
    def rounded_vjp(primals, cotangent, _):  # type: ignore[no-untyped-def]
        weight, scale = primals
        grad = cotangent.reshape(*scale.shape, -1)
        steps = weight.reshape(grad.shape) / mx.maximum(scale, SMALLEST)[..., None]
        inside = (steps > -low) & (steps < high)
        along = mx.where(inside, mx.round(steps) - steps, mx.clip(steps, -low, high))
        share = 1 / (grad.shape[2] * high) ** 0.5
        return mx.where(inside, grad, 0.0).reshape(weight.shape), share * (grad * along).sum(axis=2)

    return rounded(weight, scale)


class AwareLayer:
    """Mixed into the class of a linear layer, or of one that a method wraps: its ``formed`` weight is rounded.

    Attributes:
        bits, group_size: of the codes.
    """

    bits: int
    group_size: int

    def begin(self) -> None:
        """Adds what the rounding trains, once the layer has its weight."""

    def rounded(self) -> mx.array:
        """Q(W), float32 ``(out, in)``."""
        return straight_through(self.formed(), self.bits, self.group_size)

    def codes(self) -> tuple[mx.array, mx.array, mx.array]:
        """The words, scales and biases of Q(W), as they are stored."""
        return quantize(self.formed(), self.bits, self.group_size)

    def merged(self) -> QuantizedLinear:
        """The quantised layer whose product training saw."""
        return QuantizedLinear(*self.codes(), self.base_layer.get("bias"), self.bits, self.group_size)

    def __call__(self, x: mx.array) -> mx.array:
        y = x @ self.rounded().astype(x.dtype).T
        return y + spread(self.base_layer.bias, y.shape, x.dtype) if "bias" in self.base_layer else y


class LearnedLayer(AwareLayer):
    """As AwareLayer; the scales ``lsq_scale (out, in / g)`` are trained."""

    def begin(self) -> None:
        self.lsq_scale = initial_scale(self.formed(), self.bits, self.group_size)

    def rounded(self) -> mx.array:
        return learned_step(self.formed(), self.lsq_scale, self.bits)

    def codes(self) -> tuple[mx.array, mx.array, mx.array]:
        codes = np.array(symmetric_codes(self.formed(), self.lsq_scale, self.bits), np.uint32)
        scales = mx.maximum(self.lsq_scale, SMALLEST)
        words = mx.array(packed(codes.reshape(len(codes), -1), self.bits))
        return words, scales, -bounds(self.bits)[0] * scales


AWARE_LAYERS = {"minmax": AwareLayer, "learned": LearnedLayer}
"""The class of a rounded layer, by what ``qat.scales`` says."""


def aware(layer: nn.Module, qat: QAT) -> nn.Module:
    """The layer as one whose weight is rounded: the same parameters under the same names, in a class made from its own.

    Args:
        layer: a ``Linear``, or a method's layer: with ``formed``, its whole weight in float32, and ``base_layer``.
    """
    kind = AWARE_LAYERS[qat.scales]
    rounded_class = type(f"{kind.__name__}{type(layer).__name__}", (kind, type(layer)), {})
    rounded = rounded_class.__new__(rounded_class)
    dict.update(rounded, layer)  # a module of MLX is a dictionary of its parameters
    rounded.__dict__.update(layer.__dict__)
    rounded.bits, rounded.group_size = qat.bits, qat.group_size
    rounded.begin()
    return rounded

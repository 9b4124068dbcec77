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

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mlx_peft.codes.affine import packed
from mlx_peft.config.quantization import QAT
from torch_ref.quant.affine import QuantizedLinear, dequantize, quantize

SMALLEST = 1e-7
"""A scale is at least this, as in ``affine.quantize``."""


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, bits: int, group_size: int) -> Tensor:
        return dequantize(*quantize(weight, bits, group_size), bits, group_size)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        return cotangent, None, None


def straight_through(weight: Tensor, bits: int, group_size: int) -> Tensor:
    """The weight ``(out, in)`` that its codes stand for, float32; its gradient is the weight's."""
    return _StraightThrough.apply(weight, bits, group_size)


def bounds(bits: int) -> tuple[int, int]:
    """n and p: how many steps below and above zero a symmetric code reaches."""
    return 2 ** (bits - 1), 2 ** (bits - 1) - 1


def initial_scale(weight: Tensor, bits: int, group_size: int) -> Tensor:
    """s at the start, float32 ``(out, in / g)``."""
    groups = weight.reshape(weight.shape[0], -1, group_size)
    return (2 * groups.abs().mean(dim=2) / bounds(bits)[1] ** 0.5).clamp_min(SMALLEST)


def symmetric_codes(weight: Tensor, scale: Tensor, bits: int) -> Tensor:
    """Codes from 0 on, as float32 ``(out, in / g, g)``."""
    low, high = bounds(bits)
    groups = weight.reshape(*scale.shape, -1)
    return torch.round(groups / scale.clamp_min(SMALLEST)[..., None]).clamp(-low, high) + low


class _LearnedStep(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, scale: Tensor, bits: int) -> Tensor:
        ctx.save_for_backward(weight, scale)
        ctx.bounds = low, _ = bounds(bits)
        s = scale.clamp_min(SMALLEST)[..., None]
        return (symmetric_codes(weight, scale, bits) * s - low * s).reshape(weight.shape)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        (weight, scale), (low, high) = ctx.saved_tensors, ctx.bounds
        grad = cotangent.reshape(*scale.shape, -1)
        steps = weight.reshape(grad.shape) / scale.clamp_min(SMALLEST)[..., None]
        inside = (steps > -low) & (steps < high)
        along = torch.where(inside, torch.round(steps) - steps, steps.clamp(-low, high))
        share = 1 / (grad.shape[2] * high) ** 0.5
        return torch.where(inside, grad, 0.0).reshape(weight.shape), share * (grad * along).sum(dim=2), None


def learned_step(weight: Tensor, scale: Tensor, bits: int) -> Tensor:
    """The weight ``(out, in)`` that its codes stand for, float32, with gradients for it and for the scale."""
    return _LearnedStep.apply(weight, scale, bits)


class AwareLayer:
    """Mixed into the class of a linear layer, or of one that a method wraps: its ``formed`` weight is rounded.

    Attributes:
        bits, group_size: of the codes.
    """

    bits: int
    group_size: int

    def begin(self) -> None:
        """Adds what the rounding trains, once the layer has its weight."""

    def rounded(self) -> Tensor:
        """Q(W), float32 ``(out, in)``."""
        return straight_through(self.formed(), self.bits, self.group_size)

    @torch.no_grad()
    def codes(self) -> tuple[Tensor, Tensor, Tensor]:
        """The words, scales and biases of Q(W), as they are stored."""
        return quantize(self.formed(), self.bits, self.group_size)

    def merged(self) -> QuantizedLinear:
        """The quantised layer whose product training saw."""
        return QuantizedLinear(*self.codes(), self.base_layer.bias, self.bits, self.group_size)

    def forward(self, x: Tensor) -> Tensor:
        y = x @ self.rounded().to(x.dtype).T
        return y if self.base_layer.bias is None else y + self.base_layer.bias.to(x.dtype)


class LearnedLayer(AwareLayer):
    """As AwareLayer; the scales ``lsq_scale (out, in / g)`` are trained."""

    @torch.no_grad()
    def begin(self) -> None:
        self.lsq_scale = nn.Parameter(initial_scale(self.formed(), self.bits, self.group_size))

    def rounded(self) -> Tensor:
        return learned_step(self.formed(), self.lsq_scale, self.bits)

    @torch.no_grad()
    def codes(self) -> tuple[Tensor, Tensor, Tensor]:
        codes = symmetric_codes(self.formed(), self.lsq_scale, self.bits).cpu().numpy().astype(np.uint32)
        scales = self.lsq_scale.clamp_min(SMALLEST)
        words = torch.from_numpy(packed(codes.reshape(len(codes), -1), self.bits)).to(scales.device)
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
    rounded.__dict__.update(layer.__dict__)
    rounded._parameters = dict(layer._parameters)  # what begins here is not the old layer's
    rounded.bits, rounded.group_size = qat.bits, qat.group_size
    rounded.begin()
    return rounded

"""Affine quantisation in MLX's format, and the linear layer that computes with it.

Groups of g consecutive inputs share a scale and a bias: w ~ scale * code + bias. With lo and hi the group's extremes,
scale = max((hi - lo) / (2^bits - 1), 1e-7), negative unless |lo| > |hi|; edge is the extreme of larger magnitude, and
q0 = rint(edge / scale). Where q0 is not 0, scale = edge / q0 and bias = edge, so that zero has a code of its own;
elsewhere bias = 0. code = rint((w - bias) / scale), clipped; ties go to even, and all is float32.
The codes of a row are one little-endian stream of bits, in uint32 words. As MLX's ``quantize`` (mode affine) has it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mlx_peft.config.quantization import WORD
from torch_ref.models.layers import Linear


def quantize(weight: Tensor, bits: int, group_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Codes, scales and biases of a weight.

    Args:
        weight: ``(out, in)``, float32; g divides in.
        bits: of a code: 2, 3, 4, 5, 6 or 8.
        group_size: g: 32, 64 or 128.

    Returns:
        The codes in words, uint32 ``(out, in bits / 32)``; scales and biases, float32 ``(out, in / g)``.
    """
    most = 2**bits - 1
    w = weight.detach().float().reshape(len(weight), -1, group_size)
    lo, hi = w.amin(dim=2), w.amax(dim=2)
    scale = ((hi - lo) / most).clamp_min(1e-7)
    below = lo.abs() > hi.abs()
    scale, edge = torch.where(below, scale, -scale), torch.where(below, lo, hi)
    q0 = torch.round(edge / scale)
    scales = torch.where(q0 != 0, edge / q0, scale)
    biases = torch.where(q0 != 0, edge, torch.zeros_like(edge))
    codes = torch.round((w - biases[..., None]) / scales[..., None]).clamp_(0, most)
    return _pack(codes.reshape(weight.shape), bits), scales, biases


def _shifts(bits: int, device: torch.device) -> Tensor:
    """Where each of eight codes stands in a word of 64 bits."""
    return torch.arange(8, device=device) * bits


def _pack(codes: Tensor, bits: int) -> Tensor:
    """Eight codes fill as many bytes as a code has bits."""
    eight = codes.long().reshape(len(codes), -1, 8)
    words = (eight << _shifts(bits, codes.device)).sum(dim=2)
    return words[..., None].view(torch.uint8)[..., :bits].reshape(len(codes), -1).view(torch.uint32)


def _unpack(packed: Tensor, bits: int) -> Tensor:
    eight = packed.view(torch.uint8).reshape(len(packed), -1, bits)
    words = nn.functional.pad(eight, (0, 8 - bits)).view(torch.int64)
    return ((words >> _shifts(bits, packed.device)) & (2**bits - 1)).reshape(len(packed), -1)


def dequantize(packed: Tensor, scales: Tensor, biases: Tensor, bits: int, group_size: int) -> Tensor:
    """The weight that codes stand for, ``(out, in)``, in the dtype of the scales."""
    codes = _unpack(packed, bits).to(scales.dtype).reshape(*scales.shape, group_size)
    return codes.mul_(scales[..., None]).add_(biases[..., None]).reshape(len(scales), -1)


def opened(
    dtype: torch.dtype, weight: Tensor, scales: Tensor | None, biases: Tensor | None, form: tuple[int, int] | None
) -> Tensor:
    """W ``(out, in)`` in a dtype, of what a layer has ``held``: its weight, or codes."""
    if form is None:
        return weight.to(dtype)
    return dequantize(weight, scales.to(dtype), biases.to(dtype), *form)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, packed: Tensor, scales: Tensor, biases: Tensor, bits: int, group_size: int
    ) -> Tensor:
        ctx.save_for_backward(packed, scales, biases)
        ctx.form = bits, group_size
        return x @ dequantize(packed, scales, biases, bits, group_size).T

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        return cotangent @ dequantize(*ctx.saved_tensors, *ctx.form), None, None, None, None, None


def product(x: Tensor, packed: Tensor, scales: Tensor, biases: Tensor, bits: int, group_size: int) -> Tensor:
    """x W^T in the dtype of x, with a gradient for x alone. Codes are kept for the backward pass, not the weight."""
    return _Product.apply(x, packed, scales.to(x.dtype), biases.to(x.dtype), bits, group_size)


class QuantizedLinear(nn.Module):
    """y = x W^T + b with W in codes; it is frozen, its bias too.

    Args:
        weight: uint32 ``(out, in bits / 32)``.
        scales, biases: ``(out, in / group_size)``.
        bias: ``(out,)`` or none.
        bits, group_size: of the codes.
    """

    def __init__(self, weight: Tensor, scales: Tensor, biases: Tensor, bias: Tensor | None, bits: int, group_size: int):
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.scales = nn.Parameter(scales, requires_grad=False)
        self.biases = nn.Parameter(biases, requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)
        self.bits, self.group_size = bits, group_size

    @classmethod
    def from_linear(cls, layer: Linear, bits: int, group_size: int) -> QuantizedLinear:
        """The quantised form of a layer."""
        return cls(*quantize(layer.weight, bits, group_size), layer.bias, bits, group_size)

    @property
    def shape(self) -> tuple[int, int]:
        """``(out, in)`` of the weight that the codes stand for."""
        return self.weight.shape[0], self.weight.shape[1] * WORD // self.bits

    @property
    def held(self) -> tuple[Tensor, Tensor, Tensor, tuple[int, int]]:
        """What W is made of, as ``opened`` takes it: codes, scales and biases; their bits and group."""
        return self.weight, self.scales, self.biases, (self.bits, self.group_size)

    def dense(self) -> Tensor:
        """The weight that the codes stand for, float32 ``(out, in)``."""
        return dequantize(self.weight, self.scales.float(), self.biases.float(), self.bits, self.group_size)

    def product(self, x: Tensor) -> Tensor:
        """x W^T, the bias left out."""
        return product(x, self.weight, self.scales, self.biases, self.bits, self.group_size)

    def onto(self, y: Tensor, x: Tensor) -> Tensor:
        """y + x W^T in the place of y, the bias left out."""
        return y.add_(self.product(x))

    def dequantized(self) -> Linear:
        """A plain layer with the weight that the codes stand for, frozen, in the dtype of the scales."""
        outputs, inputs = self.shape
        layer = Linear(inputs, outputs, bias=False).requires_grad_(False)
        layer.weight.data, layer.bias = self.dense().to(self.scales.dtype), self.bias
        return layer

    def forward(self, x: Tensor) -> Tensor:
        y = self.product(x)
        return y if self.bias is None else y + self.bias.to(x.dtype)

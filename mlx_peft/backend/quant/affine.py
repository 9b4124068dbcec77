"""Affine quantisation in MLX's format, and the linear layer that computes with it.

Groups of g consecutive inputs share a scale and a bias: w ~ scale * code + bias. With lo and hi the group's extremes,
scale = max((hi - lo) / (2^bits - 1), 1e-7), negative unless |lo| > |hi|; edge is the extreme of larger magnitude, and
q0 = rint(edge / scale). Where q0 is not 0, scale = edge / q0 and bias = edge, so that zero has a code of its own;
elsewhere bias = 0. code = rint((w - bias) / scale), clipped; ties go to even, and all is float32.
The codes of a row are one little-endian stream of bits, in uint32 words. As MLX's ``quantize`` (mode affine) has it.
"""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from mlx_peft.backend.models.layers import Linear
from mlx_peft.config.quantization import WORD


def quantize(weight: mx.array, bits: int, group_size: int) -> tuple[mx.array, mx.array, mx.array]:
    """Codes, scales and biases of a weight.

    Args:
        weight: ``(out, in)``, float32; g divides in.
        bits: of a code: 2, 3, 4, 5, 6 or 8.
        group_size: g: 32, 64 or 128.

    Returns:
        The codes in words, uint32 ``(out, in bits / 32)``; scales and biases, float32 ``(out, in / g)``.
    """
    return mx.quantize(weight.astype(mx.float32), group_size=group_size, bits=bits)


def dequantize(packed: mx.array, scales: mx.array, biases: mx.array, bits: int, group_size: int) -> mx.array:
    """The weight that codes stand for, ``(out, in)``, in the dtype of the scales."""
    return mx.dequantize(packed, scales, biases, group_size=group_size, bits=bits)


def opened(
    dtype: mx.Dtype, weight: mx.array, scales: mx.array | None, biases: mx.array | None, form: tuple[int, int] | None
) -> mx.array:
    """W ``(out, in)`` in a dtype, of what a layer has ``held``: its weight, or codes."""
    if form is None:
        return weight.astype(dtype)
    bits, group_size = form
    return dequantize(weight, scales.astype(dtype), biases.astype(dtype), bits, group_size)


def product(x: mx.array, packed: mx.array, scales: mx.array, biases: mx.array, bits: int, group_size: int) -> mx.array:
    """x W^T in the dtype of x, with a gradient for x alone. Codes are kept for the backward pass, not the weight."""
    scales, biases = scales.astype(x.dtype), biases.astype(x.dtype)
    if mx.default_device().type == mx.gpu:
        return mx.quantized_matmul(x, packed, scales, biases, transpose=True, group_size=group_size, bits=bits)

    # MLX's own product takes thirty times as long as this on a CPU.
    @mx.custom_function
    def through(x: mx.array) -> mx.array:
        return x @ dequantize(packed, scales, biases, bits, group_size).T

    @through.vjp
    def through_vjp(x, cotangent, _):  # type: ignore[no-untyped-def]
        # Said to come after the cotangent, so that the compiler does not keep the forward's weight alive till here.
        (again,) = mx.depends([packed], [cotangent])
        return cotangent @ dequantize(again, scales, biases, bits, group_size)

    return through(x)


class QuantizedLinear(nn.Module):
    """y = x W^T + b with W in codes; it is frozen, its bias too.

    Args:
        weight: uint32 ``(out, in bits / 32)``.
        scales, biases: ``(out, in / group_size)``.
        bias: ``(out,)`` or none.
        bits, group_size: of the codes.
    """

    def __init__(
        self, weight: mx.array, scales: mx.array, biases: mx.array, bias: mx.array | None, bits: int, group_size: int
    ):
        super().__init__()
        self.weight, self.scales, self.biases = weight, scales, biases
        if bias is not None:
            self.bias = bias
        self.bits, self.group_size = bits, group_size
        self.freeze()

    @classmethod
    def from_linear(cls, layer: Linear, bits: int, group_size: int) -> QuantizedLinear:
        """The quantised form of a layer."""
        return cls(*quantize(layer.weight, bits, group_size), layer.get("bias"), bits, group_size)

    @property
    def shape(self) -> tuple[int, int]:
        """``(out, in)`` of the weight that the codes stand for."""
        return self.weight.shape[0], self.weight.shape[1] * WORD // self.bits

    @property
    def held(self) -> tuple[mx.array, mx.array, mx.array, tuple[int, int]]:
        """What W is made of, as ``opened`` takes it: codes, scales and biases; their bits and group."""
        return self.weight, self.scales, self.biases, (self.bits, self.group_size)

    def dense(self) -> mx.array:
        """The weight that the codes stand for, float32 ``(out, in)``."""
        scales, biases = self.scales.astype(mx.float32), self.biases.astype(mx.float32)
        return dequantize(self.weight, scales, biases, self.bits, self.group_size)

    def product(self, x: mx.array) -> mx.array:
        """x W^T, the bias left out."""
        return product(x, self.weight, self.scales, self.biases, self.bits, self.group_size)

    def dequantized(self) -> Linear:
        """A plain layer with the weight that the codes stand for, frozen, in the dtype of the scales."""
        outputs, inputs = self.shape
        layer = Linear(inputs, outputs, "bias" in self)
        layer.weight = self.dense().astype(self.scales.dtype)
        if "bias" in self:
            layer.bias = self.bias
        layer.freeze()
        return layer

    def __call__(self, x: mx.array) -> mx.array:
        y = self.product(x)
        return y + self.bias.astype(x.dtype) if "bias" in self else y

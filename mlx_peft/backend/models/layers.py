"""The small layers of a ViT. A parameter is cast to the dtype of the activation that meets it.

So frozen weights may be stored in half precision and trained ones in float32, and no layer needs to know. The gradient
of a parameter that meets every row is a sum over thousands of them: it is accumulated in float32, whatever the dtype.
"""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from mlx_peft.backend.models.gelu import gelu
from mlx_peft.vit.architecture import Architecture


def spread(parameter: mx.array, shape: tuple[int, ...], dtype: mx.Dtype) -> mx.array:
    """The parameter, broadcast to a shape, in a dtype; its gradient sums what it was spread to in float32."""
    if parameter.dtype == dtype:
        return mx.broadcast_to(parameter, shape)

    # Metal adds up in the dtype of what it adds: in bfloat16 a few hundred rows are enough to lose the rest.
    @mx.custom_function
    def spread_out(parameter: mx.array) -> mx.array:
        return mx.broadcast_to(parameter.astype(dtype), shape)

    @spread_out.vjp
    def spread_out_vjp(parameter, cotangent, _):  # type: ignore[no-untyped-def]
        before = len(shape) - parameter.ndim
        axes = [axis for axis, n in enumerate((1,) * before + parameter.shape) if n != shape[axis]]
        return cotangent.astype(mx.float32).sum(axes).reshape(parameter.shape)

    return spread_out(parameter)


class ChannelsLast(nn.Module):
    """A layer whose ``weight`` is a convolution's, ``(out, height, width, in)``: timm's is ``(out, in, ...)``."""


class Linear(nn.Module):
    """y = x W^T + b; W ``(out, in)``, b ``(out,)`` or none.

    What a method asks of its base, ``shape``, ``dense`` and ``product``, a quantised layer answers too.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True):
        super().__init__()
        self.weight = mx.zeros((out_features, in_features))
        if bias:
            self.bias = mx.zeros((out_features,))

    @property
    def shape(self) -> tuple[int, int]:
        """``(out, in)``."""
        return self.weight.shape

    @property
    def base_layer(self) -> Linear:
        """The layer that has weight and bias: itself. A method's layer has another."""
        return self

    @property
    def held(self) -> tuple[mx.array, None, None, None]:
        """What W is made of, as ``quant.affine.opened`` takes it: W itself."""
        return self.weight, None, None, None

    def dense(self) -> mx.array:
        """W in float32."""
        return self.weight.astype(mx.float32)

    def formed(self) -> mx.array:
        """W in float32: a method's layer has its update in it."""
        return self.dense()

    def product(self, x: mx.array) -> mx.array:
        """x W^T, the bias left out."""
        return x @ self.weight.astype(x.dtype).T

    def with_weight(self, weight: mx.array) -> Linear:
        """A plain layer with another weight, frozen: in this one's dtype, with its bias."""
        layer = Linear(weight.shape[1], weight.shape[0], "bias" in self)
        if "bias" in self:
            layer.bias = self.bias
        layer.weight = weight.astype(self.weight.dtype)
        layer.freeze()
        return layer

    def __call__(self, x: mx.array) -> mx.array:
        if "bias" not in self:
            return self.product(x)
        weight = self.weight.astype(x.dtype)
        if self.bias.dtype == x.dtype:
            return mx.addmm(self.bias, x, weight.T)
        # All rows at once: with a bias for each image, W's gradient is a product for each, summed in half precision.
        rows = x.reshape(-1, x.shape[-1])
        return mx.addmm(spread(self.bias, (len(rows), len(weight)), x.dtype), rows, weight.T).reshape(*x.shape[:-1], -1)


class LayerNorm(nn.Module):
    """Layer normalisation over the last axis (Ba et al. 2016)."""

    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.weight = mx.ones((dim,))
        self.bias = mx.zeros((dim,))
        self.eps = eps

    def __call__(self, x: mx.array) -> mx.array:
        if self.weight.dtype == self.bias.dtype == x.dtype:
            return mx.fast.layer_norm(x, self.weight, self.bias, self.eps)
        return self._narrowed(x)

    def normed(self, x: mx.array) -> mx.array:
        """x before weight and bias."""
        return mx.fast.layer_norm(x, None, None, self.eps)

    def _narrowed(self, x: mx.array) -> mx.array:
        """The same kernel with weight and bias in the dtype of x. Its own backward pass would add up their gradients in
        that dtype too."""

        @mx.custom_function
        def norm(x: mx.array, weight: mx.array, bias: mx.array) -> mx.array:
            return mx.fast.layer_norm(x, weight.astype(x.dtype), bias.astype(x.dtype), self.eps)

        @norm.vjp
        def norm_vjp(primals, cotangent, _):  # type: ignore[no-untyped-def]
            x, weight, bias = primals
            narrow = weight.astype(x.dtype), bias.astype(x.dtype)
            _, (dx,) = mx.vjp(lambda x: mx.fast.layer_norm(x, *narrow, self.eps), [x], [cotangent])
            wide, rows = cotangent.astype(mx.float32), tuple(range(x.ndim - 1))
            return dx, (wide * self.normed(x)).sum(rows), wide.sum(rows)

        return norm(x, self.weight, self.bias)


class RMSNorm(nn.Module):
    """Root mean square normalisation over the last axis (Zhang and Sennrich 2019)."""

    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.weight = mx.ones((dim,))
        self.eps = eps

    def __call__(self, x: mx.array) -> mx.array:
        if self.weight.dtype == x.dtype:
            return mx.fast.rms_norm(x, self.weight, self.eps)
        return self.normed(x) * spread(self.weight, x.shape, x.dtype)

    def normed(self, x: mx.array) -> mx.array:
        """x before the weight."""
        return mx.fast.rms_norm(x, None, self.eps)


class LayerScale(nn.Module):
    """x * gamma, one factor a channel (Touvron et al. 2021, CaiT)."""

    def __init__(self, dim: int):
        super().__init__()
        self.gamma = mx.ones((dim,))

    def __call__(self, x: mx.array) -> mx.array:
        return x * spread(self.gamma, x.shape, x.dtype)


def quick_gelu(x: mx.array) -> mx.array:
    """x sigmoid(1.702 x), OpenAI CLIP's approximation of GELU."""
    return x * mx.sigmoid(1.702 * x)


ACTIVATIONS = {"gelu": gelu, "gelu_tanh": nn.gelu_approx, "quick_gelu": quick_gelu, "silu": nn.silu}
NORMS = {"layernorm": LayerNorm, "rmsnorm": RMSNorm}


def norm(architecture: Architecture, dim: int, present: bool = True) -> nn.Module:
    """The architecture's norm over ``dim`` channels, or an identity."""
    return NORMS[architecture.norm_layer](dim, architecture.norm_eps) if present else nn.Identity()


def layer_scale(architecture: Architecture) -> nn.Module:
    """The architecture's layer scale, or an identity."""
    return LayerScale(architecture.embed_dim) if architecture.layer_scale else nn.Identity()

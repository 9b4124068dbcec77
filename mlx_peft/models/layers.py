"""The small layers of a ViT. A parameter is cast to the dtype of the activation that meets it.

So frozen weights may be stored in half precision and trained ones in float32, and no layer needs to know.
"""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from mlx_peft.config.architecture import Architecture
from mlx_peft.models.gelu import gelu


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
        if "bias" in self:
            return mx.addmm(self.bias.astype(x.dtype), x, self.weight.astype(x.dtype).T)
        return self.product(x)


class LayerNorm(nn.Module):
    """Layer normalisation over the last axis (Ba et al. 2016)."""

    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.weight = mx.ones((dim,))
        self.bias = mx.zeros((dim,))
        self.eps = eps

    def __call__(self, x: mx.array) -> mx.array:
        return mx.fast.layer_norm(x, self.weight.astype(x.dtype), self.bias.astype(x.dtype), self.eps)


class RMSNorm(nn.Module):
    """Root mean square normalisation over the last axis (Zhang and Sennrich 2019)."""

    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.weight = mx.ones((dim,))
        self.eps = eps

    def __call__(self, x: mx.array) -> mx.array:
        return mx.fast.rms_norm(x, self.weight.astype(x.dtype), self.eps)


class LayerScale(nn.Module):
    """x * gamma, one factor a channel (Touvron et al. 2021, CaiT)."""

    def __init__(self, dim: int):
        super().__init__()
        self.gamma = mx.ones((dim,))

    def __call__(self, x: mx.array) -> mx.array:
        return x * self.gamma.astype(x.dtype)


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
    return LayerScale(architecture.embed_dim) if architecture.init_values else nn.Identity()

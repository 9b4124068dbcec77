"""The small layers of a ViT. A parameter is cast to the dtype of the activation that meets it.

So frozen weights may be stored in half precision and trained ones in float32, and no layer needs to know. The gradient
of a parameter that meets every row is a sum over thousands of them: it is accumulated in float32, whatever the dtype.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlx_peft.vit.architecture import Architecture
from torch_ref.models.gelu import gelu


def spread(parameter: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """The parameter, broadcast to a shape, in a dtype; its gradient sums what it was spread to in float32."""
    return parameter.expand(shape) if parameter.dtype == dtype else _Spread.apply(parameter, shape, dtype)


class _Spread(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, parameter: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        ctx.shape = parameter.shape
        return parameter.to(dtype).expand(shape)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        return cotangent.float().sum_to_size(ctx.shape), None, None


class Linear(nn.Module):
    """y = x W^T + b; W ``(out, in)``, b ``(out,)`` or none.

    What a method asks of its base, ``shape``, ``dense`` and ``product``, a quantised layer answers too.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(out_features, in_features))
        self.bias = nn.Parameter(torch.zeros(out_features)) if bias else None

    @property
    def shape(self) -> tuple[int, int]:
        """``(out, in)``."""
        return tuple(self.weight.shape)

    @property
    def base_layer(self) -> Linear:
        """The layer that has weight and bias: itself. A method's layer has another."""
        return self

    @property
    def held(self) -> tuple[Tensor, None, None, None]:
        """What W is made of, as ``quant.affine.opened`` takes it: W itself."""
        return self.weight, None, None, None

    def dense(self) -> Tensor:
        """W in float32."""
        return self.weight.float()

    def formed(self) -> Tensor:
        """W in float32: a method's layer has its update in it."""
        return self.dense()

    def product(self, x: Tensor) -> Tensor:
        """x W^T, the bias left out."""
        return x @ self.weight.to(x.dtype).T

    def onto(self, y: Tensor, x: Tensor) -> Tensor:
        """y + x W^T in the place of y, the bias left out."""
        y.view(-1, y.shape[-1]).addmm_(x.reshape(-1, x.shape[-1]), self.weight.to(x.dtype).T)
        return y

    def with_weight(self, weight: Tensor) -> Linear:
        """A plain layer with another weight, frozen: in this one's dtype, with its bias."""
        layer = Linear(weight.shape[1], weight.shape[0], bias=False).requires_grad_(False)
        layer.weight.data, layer.bias = weight.to(self.weight.dtype), self.bias
        return layer

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.linear(x, self.weight.to(x.dtype), bias)


class LayerNorm(nn.Module):
    """Layer normalisation over the last axis (Ba et al. 2016)."""

    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        if self.weight.dtype == self.bias.dtype == x.dtype or x.is_cuda:
            return F.layer_norm(x, x.shape[-1:], self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)
        return _LayerNorm.apply(x, self.weight, self.bias, self.eps)

    def normed(self, x: Tensor) -> Tensor:
        """x before weight and bias."""
        return F.layer_norm(x, x.shape[-1:], eps=self.eps)


class _LayerNorm(torch.autograd.Function):
    """``F.layer_norm`` in the dtype of x with a backward pass in float32: torch's own on a CPU adds up the gradients of
    weight and bias, row by row, in the dtype of x. Given weights in that dtype it would also keep each row's mean and
    deviation in it, which are as far off as the mean is large."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        y, mean, rstd = torch.native_layer_norm(x, x.shape[-1:], weight.float(), bias.float(), eps)
        ctx.save_for_backward(x, weight, bias, mean, rstd)
        return y

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        x, *saved = (tensor.float() for tensor in ctx.saved_tensors)
        weight, bias, mean, rstd = saved
        wanted = list(ctx.needs_input_grad[:3])
        dx, dw, db = torch.ops.aten.native_layer_norm_backward(
            cotangent.float(), x, x.shape[-1:], mean, rstd, weight, bias, wanted
        )
        return None if dx is None else dx.to(cotangent.dtype), dw, db, None


class RMSNorm(nn.Module):
    """Root mean square normalisation over the last axis (Zhang and Sennrich 2019)."""

    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = None
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], self.weight.to(x.dtype), self.eps)

    def normed(self, x: Tensor) -> Tensor:
        """x before the weight."""
        return F.rms_norm(x, x.shape[-1:], eps=self.eps)


class LayerScale(nn.Module):
    """x * gamma, one factor a channel (Touvron et al. 2021, CaiT)."""

    def __init__(self, dim: int):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma.to(x.dtype)


def quick_gelu(x: Tensor) -> Tensor:
    """x sigmoid(1.702 x), OpenAI CLIP's approximation of GELU."""
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS = {
    "gelu": gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "quick_gelu": quick_gelu,
    "silu": F.silu,
}
NORMS = {"layernorm": LayerNorm, "rmsnorm": RMSNorm}


def norm(architecture: Architecture, dim: int, present: bool = True) -> nn.Module:
    """The architecture's norm over ``dim`` channels, or an identity."""
    return NORMS[architecture.norm_layer](dim, architecture.norm_eps) if present else nn.Identity()


def layer_scale(architecture: Architecture) -> nn.Module:
    """The architecture's layer scale, or an identity."""
    return LayerScale(architecture.embed_dim) if architecture.layer_scale else nn.Identity()

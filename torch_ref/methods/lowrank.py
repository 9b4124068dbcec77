"""What all layers with a low-rank update of a frozen weight do alike."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from torch_ref.methods.adapted import Adapted
from torch_ref.methods.joined import balanced, joined
from torch_ref.models.layers import Linear
from torch_ref.models.stochastic import Dropout


class LowRankLinear(Adapted):
    """y = W x + b + s B A drop(x), whatever A and B are made of; in float32 whatever the base's dtype.

    Args:
        base_layer: the layer; it is kept as ``base_layer``.
        scaling: s.
        dropout: probability on the input of A.
    """

    def __init__(self, base_layer: Linear, scaling: float = 1.0, dropout: float = 0.0):
        super().__init__(base_layer)
        self.dropout = Dropout(dropout)
        self.scaling = scaling

    def factors(self) -> tuple[Tensor, Tensor]:
        """A ``(r, in)`` and B ``(out, r)`` of the whole change from W, s left out."""
        raise NotImplementedError

    def forms(self, x: Tensor) -> bool:
        """Whether y is one product with the formed weight.

        In half precision W + s B A would round small updates away: there W and s B are beside one another in one
        product. Codes would be unpacked to be added to, and dropout is on the input of A alone.
        """
        return x.dtype == self.base_layer.weight.dtype == torch.float32 and not (self.training and self.dropout.rate)

    def forward(self, x: Tensor) -> Tensor:
        if self.forms(x):
            return formed_product(x, self.base_layer.weight, self.base_layer.bias, *self.factors(), self.scaling)
        return self.beside(x)

    def beside(self, x: Tensor) -> Tensor:
        """y, the update computed beside W: in float32 two narrow products with the activations."""
        A, B = self.factors()
        if x.dtype == torch.float32:
            return self.plus(self.base_layer(x), self.dropout(x), A, B)
        A, B = balanced(A, self.scaling * B, x.dtype)
        return joined(self.base_layer, x, lambda x: (narrowed(self.dropout(x), A), None), B)

    def plus(self, y: Tensor, x: Tensor, A: Tensor, B: Tensor) -> Tensor:
        """y + s B A x, in the dtype of x."""
        return y + narrowed(x, A) @ (self.scaling * B).to(x.dtype).T

    def formed(self) -> Tensor:
        """W + s B A ``(out, in)``, in float32."""
        A, B = self.factors()
        return self.base_layer.dense() + self.scaling * (B @ A)

    @torch.no_grad()
    def merged(self) -> Linear:
        """A plain layer with the formed weight, computed in float32 and kept in the base's dtype."""
        return self.base_layer.with_weight(self.formed())


def narrowed(x: Tensor, A: Tensor) -> Tensor:
    """x A^T ``(..., r)`` in the dtype of x."""
    return x @ A.to(x.dtype).T


class _FormedProduct(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, A: Tensor, B: Tensor, scaling: float
    ) -> Tensor:
        ctx.save_for_backward(x, weight, A, B)
        ctx.scaling = scaling
        return F.linear(x, torch.addmm(weight, B, A, alpha=scaling), bias)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, A, B = ctx.saved_tensors
        rows, grad = x.reshape(-1, x.shape[-1]), cotangent.reshape(-1, cotangent.shape[-1])
        dx = None
        if ctx.needs_input_grad[0]:
            dx = (grad @ torch.addmm(weight, B, A, alpha=ctx.scaling)).reshape(x.shape)
        dA = (grad @ B).mul_(ctx.scaling).T @ rows if ctx.needs_input_grad[3] else None
        dB = ((rows @ A.T).mul_(ctx.scaling).T @ grad).T  # twice as fast as its transpose
        return dx, None, None, dA, dB, None


def formed_product(x: Tensor, weight: Tensor, bias: Tensor | None, A: Tensor, B: Tensor, scaling: float) -> Tensor:
    """x (W + s B A)^T + b in one product, without a gradient for W.

    Forming W + s B A costs r multiplications a weight, far less than a second pass over the activations. The backward
    pass forms it again rather than keep it. With g = dL/dy: dx = g (W + s B A), dA = s (g B)^T x, dB = s g^T (x A^T).
    """
    return _FormedProduct.apply(x, weight, bias, A, B, scaling)

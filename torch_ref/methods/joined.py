"""A frozen layer with what stands beside it as one product, whose sum is rounded once: for half precision.

    y = W x + b + B n + a = [x, n] [W, B]^T + b + a

A product of 16-bit numbers is added up in float32 and then rounded: by tensor cores, Metal's kernels, and those of a
CPU. If B n came after W x + b had been rounded, what is less than half the distance between two 16-bit numbers there
would be lost, and all of it wherever it is small. In one sum it moves each y to the next number as often as is right in
the mean.

The same holds of the gradient: with g = dL/dy, dx = g W + (dn/dx)^T g B, and the second term, which is rounded in
relation to itself, is what the product g W is added up onto. So n and a are computed of a copy of x, whose gradient is
that term; and g comes to it as the gradient of zeros that no number of y depends on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from torch_ref.models.layers import Linear
from torch_ref.quant.affine import QuantizedLinear, opened

EVEN = 8
"""A row of operands is filled up to a multiple of so many numbers: 16 bytes, in which tensor cores take them."""

Beside = Callable[[Tensor], tuple[Tensor, Tensor | None]]
"""Of x ``(..., in)`` n ``(..., r)`` and a ``(..., out)``, in the dtype of x; None: there is no a."""


def joined(layer: Linear | QuantizedLinear, x: Tensor, beside: Beside, B: Tensor, bias: bool = True) -> Tensor:
    """W x + b + B n + a ``(..., out)`` in the dtype of x, rounded once; no gradient goes to W and b.

    Args:
        layer: has W and b; of codes W is made in both passes, and not kept.
        x: ``(..., in)``.
        beside: what n and a are.
        B: ``(out, r)``.
        bias: whether b is added.
    """
    side, zeros = _Fork.apply(x, layer.shape[0], *layer.held)
    narrow, added = beside(side)
    B, b = B.to(x.dtype), layer.bias.to(x.dtype) if bias and layer.bias is not None else None
    if added is not None and b is not None:  # which takes the bias's place: that is a column of B
        narrow, B, b = F.pad(narrow, (0, 1), value=1.0), torch.cat([B, b[:, None]], dim=1), None
    return _Join.apply(x, zeros, narrow, B, added, b, *layer.held)


def balanced(A: Tensor, B: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """A f and B / f for each of the r: in float16, whose numbers end at 6e-8, both are as large as one another; f is a
    power of two, which changes no digit, and a constant to the gradient. In other precisions A and B themselves."""
    if dtype != torch.float16:
        return A, B
    with torch.no_grad():
        a, b = A.abs().amax(dim=1), B.abs().amax(dim=0)
        f = torch.where((a > 0) & (b > 0), torch.exp2(torch.round((torch.log2(b) - torch.log2(a)) / 2)), 1.0)
    return A * f[:, None], B / f


class _Fork(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, outputs: int, *held: Any) -> tuple[Tensor, Tensor]:
        *tensors, ctx.form = held
        ctx.save_for_backward(*tensors)
        return x.view_as(x), x.new_zeros(1).expand(*x.shape[:-1], outputs)

    @staticmethod
    def backward(ctx: Any, side: Tensor, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        weight = opened(cotangent.dtype, *ctx.saved_tensors, ctx.form)
        grad = cotangent.reshape(-1, cotangent.shape[-1])
        dx = torch.addmm(side.reshape(-1, side.shape[-1]), grad, weight)
        return dx.reshape(side.shape), *(None,) * 5


class _Join(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, zeros: Tensor, n: Tensor, B: Tensor, a: Tensor | None, b: Tensor | None, *held: Any
    ) -> Tensor:
        _, _, of_n, of_B, *_ = ctx.needs_input_grad
        ctx.save_for_backward(n if of_B else None, B if of_n else None)
        rows, weight, missing = x.reshape(-1, x.shape[-1]), opened(x.dtype, *held), -(x.shape[-1] + n.shape[-1]) % EVEN
        left, right = [rows, n.reshape(len(rows), -1)], [weight, B]
        if missing:
            left.append(rows.new_zeros(len(rows), missing))
            right.append(rows.new_zeros(len(weight), missing))
        factors = torch.cat(left, dim=1), torch.cat(right, dim=1).T
        start = b if a is None else a.reshape(len(rows), -1)
        y = torch.mm(*factors) if start is None else torch.addmm(start, *factors)
        return y.reshape(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        n, B = ctx.saved_tensors
        grad = cotangent.reshape(-1, cotangent.shape[-1])
        _, _, of_n, of_B, of_a, *_ = ctx.needs_input_grad
        dn = (grad @ B).reshape(*cotangent.shape[:-1], -1) if of_n else None
        dB = (n.reshape(len(grad), -1).T @ grad).T if of_B else None
        return None, cotangent, dn, dB, cotangent if of_a else None, *(None,) * 5


def rescaled(z: Tensor, c: Tensor, b: Tensor | None = None) -> Tensor:
    """c z + b in float32, rounded once to the dtype of z; no gradient goes to b.

    Args:
        z: ``(..., out)``; all that is kept of it for c's gradient.
        c: float32 ``(out,)``, and so its gradient; b likewise, or in any dtype.
    """
    return _Rescaled.apply(z, c, b)


class _Rescaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, c: Tensor, b: Tensor | None) -> Tensor:
        ctx.save_for_backward(z, c)
        y = z * c
        return (y if b is None else y.add_(b)).to(z.dtype)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        z, c = ctx.saved_tensors
        return (cotangent * c).to(z.dtype), (cotangent.float() * z).sum_to_size(c.shape), None

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

import mlx.core as mx

from mlx_peft.backend.models.layers import Linear
from mlx_peft.backend.quant.affine import QuantizedLinear, opened

EVEN = 8
"""A row of operands is filled up to a multiple of so many numbers: 16 bytes, in which tensor cores take them."""

Beside = Callable[[mx.array], tuple[mx.array, mx.array | None]]
"""Of x ``(..., in)`` n ``(..., r)`` and a ``(..., out)``, in the dtype of x; None: there is no a."""


def joined(layer: Linear | QuantizedLinear, x: mx.array, beside: Beside, B: mx.array, bias: bool = True) -> mx.array:
    """W x + b + B n + a ``(..., out)`` in the dtype of x, rounded once; no gradient goes to W and b.

    Args:
        layer: has W and b; of codes W is made in both passes, and not kept.
        x: ``(..., in)``.
        beside: what n and a are.
        B: ``(out, r)``.
        bias: whether b is added.
    """
    side, zeros = _fork(layer, x)
    narrow, added = beside(side)
    B, b = B.astype(x.dtype), layer.bias.astype(x.dtype) if bias and "bias" in layer else None
    if added is not None and b is not None:  # which takes the bias's place: that is a column of B
        ones = mx.ones((*x.shape[:-1], 1), x.dtype)
        narrow, B, b = mx.concatenate([narrow, ones], axis=-1), mx.concatenate([B, b[:, None]], axis=1), None
    return _join(layer, x, zeros, narrow, B, added, b)


def balanced(A: mx.array, B: mx.array, dtype: mx.Dtype) -> tuple[mx.array, mx.array]:
    """A f and B / f for each of the r: in float16, whose numbers end at 6e-8, both are as large as one another; f is a
    power of two, which changes no digit, and a constant to the gradient. In other precisions A and B themselves."""
    if dtype != mx.float16:
        return A, B
    a, b = mx.stop_gradient(mx.abs(A).max(axis=1)), mx.stop_gradient(mx.abs(B).max(axis=0))
    f = mx.where((a > 0) & (b > 0), mx.power(2.0, mx.round((mx.log2(b) - mx.log2(a)) / 2)), 1.0)
    return A * f[:, None], B / f


def _fork(layer: Linear | QuantizedLinear, x: mx.array) -> tuple[mx.array, mx.array]:
    weight, *codes = layer.held

    @mx.custom_function
    def fork(x: mx.array) -> tuple[mx.array, mx.array]:
        return x, mx.broadcast_to(mx.zeros((), x.dtype), (*x.shape[:-1], layer.shape[0]))

    @fork.vjp
    def fork_vjp(x, cotangents, _):  # type: ignore[no-untyped-def]
        side, cotangent = cotangents
        again = weight
        if weight.dtype == mx.uint32:
            # Said to come after the cotangent, so that the compiler does not keep the forward's W alive till here.
            (again,) = mx.depends([weight], [cotangent])
        grad = cotangent.reshape(-1, cotangent.shape[-1])
        dx = mx.addmm(side.reshape(-1, side.shape[-1]), grad, opened(x.dtype, again, *codes))
        return dx.reshape(x.shape)

    return tuple(fork(x))


def _join(
    layer: Linear | QuantizedLinear, x: mx.array, zeros: mx.array, n: mx.array, B: mx.array, a: mx.array | None,
    b: mx.array | None,
) -> mx.array:  # fmt: skip
    rows, shape = mx.stop_gradient(x).reshape(-1, x.shape[-1]), (*x.shape[:-1], layer.shape[0])

    @mx.custom_function
    def join(zeros: mx.array, n: mx.array, B: mx.array, *a: mx.array) -> mx.array:
        weight, missing = opened(x.dtype, *layer.held), -(x.shape[-1] + n.shape[-1]) % EVEN
        left, right = [rows, n.reshape(len(rows), -1)], [weight, B]
        if missing:
            left.append(mx.zeros((len(rows), missing), x.dtype))
            right.append(mx.zeros((len(weight), missing), x.dtype))
        factors = mx.concatenate(left, axis=1), mx.concatenate(right, axis=1).T
        start = a[0].reshape(len(rows), -1) if a else b
        y = mx.matmul(*factors) if start is None else mx.addmm(start, *factors)
        return y.reshape(shape)

    @join.vjp
    def join_vjp(primals, cotangent, _):  # type: ignore[no-untyped-def]
        _, n, B, *a = primals
        grad = cotangent.reshape(-1, cotangent.shape[-1])
        dn, dB = (grad @ B).reshape(n.shape), (n.reshape(len(grad), -1).T @ grad).T
        return cotangent, dn, dB, *([cotangent] if a else [])

    return join(zeros, n, B, *([] if a is None else [a]))


def rescaled(z: mx.array, c: mx.array, b: mx.array | None = None) -> mx.array:
    """c z + b in float32, rounded once to the dtype of z; no gradient goes to b.

    Args:
        z: ``(..., out)``; all that is kept of it for c's gradient.
        c: float32 ``(out,)``, and so its gradient; b likewise, or in any dtype.
    """

    @mx.custom_function
    def scale(z: mx.array, c: mx.array) -> mx.array:
        return (z * c if b is None else z * c + b).astype(z.dtype)

    @scale.vjp
    def scale_vjp(primals, cotangent, _):  # type: ignore[no-untyped-def]
        z, c = primals
        rows = tuple(range(z.ndim - 1))
        return (cotangent * c).astype(z.dtype), (cotangent.astype(mx.float32) * z).sum(rows)

    return scale(z, c)

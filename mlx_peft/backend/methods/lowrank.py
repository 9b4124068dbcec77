"""What all layers with a low-rank update of a frozen weight do alike."""

from __future__ import annotations

import mlx.core as mx

from mlx_peft.backend.methods.adapted import Adapted
from mlx_peft.backend.methods.joined import balanced, joined
from mlx_peft.backend.models.layers import Linear
from mlx_peft.backend.models.stochastic import Dropout


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

    def factors(self) -> tuple[mx.array, mx.array]:
        """A ``(r, in)`` and B ``(out, r)`` of the whole change from W, s left out."""
        raise NotImplementedError

    def forms(self, x: mx.array) -> bool:
        """Whether y is one product with the formed weight.

        In half precision W + s B A would round small updates away: there W and s B are beside one another in one
        product. Codes would be unpacked to be added to, and dropout is on the input of A alone.
        """
        return x.dtype == self.base_layer.weight.dtype == mx.float32 and not (self.training and self.dropout.rate)

    def __call__(self, x: mx.array) -> mx.array:
        if self.forms(x):
            return formed_product(x, self.base_layer.weight, self.base_layer.get("bias"), *self.factors(), self.scaling)
        return self.beside(x)

    def beside(self, x: mx.array) -> mx.array:
        """y, the update computed beside W: in float32 two narrow products with the activations."""
        A, B = self.factors()
        if x.dtype != mx.float32:
            A, B = balanced(A, self.scaling * B, x.dtype)
            return joined(self.base_layer, x, lambda x: (narrowed(self.dropout(x), A), None), B)
        dropped = self.dropout(x)
        if dropped is not x:
            return self.plus(self.base_layer(x), dropped, A, B)
        return _beside(self.base_layer, x, A.astype(x.dtype), (self.scaling * B).astype(x.dtype))

    def plus(self, y: mx.array, x: mx.array, A: mx.array, B: mx.array) -> mx.array:
        """y + s B A x, in the dtype of x."""
        return _plus(y, x, A.astype(x.dtype), (self.scaling * B).astype(x.dtype))

    def formed(self) -> mx.array:
        """W + s B A ``(out, in)``, in float32."""
        A, B = self.factors()
        return self.base_layer.dense() + self.scaling * (B @ A)

    def merged(self) -> Linear:
        """A plain layer with the formed weight, computed in float32 and kept in the base's dtype."""
        return self.base_layer.with_weight(self.formed())


def narrowed(x: mx.array, A: mx.array) -> mx.array:
    """x A^T ``(..., r)`` in the dtype of x."""
    # Of all rows at once: A's gradient is then a product, and no sum of one for each image.
    return (x.reshape(-1, x.shape[-1]) @ A.astype(x.dtype).T).reshape(*x.shape[:-1], -1)


def _plus(y: mx.array, x: mx.array, A: mx.array, B: mx.array) -> mx.array:
    """y + B A x: products of all rows at once, whose gradients are then products and no sums of one for each image."""
    narrow = x.reshape(-1, x.shape[-1]) @ A.T
    return mx.addmm(y.reshape(-1, y.shape[-1]), narrow, B.T).reshape(y.shape)


def _beside(layer: Linear, x: mx.array, A: mx.array, B: mx.array) -> mx.array:
    """layer(x) + B A x, without a gradient for the layer: what x gets from both is added up by the second product."""

    @mx.custom_function
    def product(x: mx.array, A: mx.array, B: mx.array) -> mx.array:
        return _plus(layer(x), x, A, B)

    @product.vjp
    def product_vjp(primals, cotangent, _):  # type: ignore[no-untyped-def]
        x, A, B = primals
        _, (dx,) = mx.vjp(layer, [x], [cotangent])
        rows, grad = x.reshape(-1, x.shape[-1]), cotangent.reshape(-1, cotangent.shape[-1])
        narrow = grad @ B
        dx = mx.addmm(dx.reshape(rows.shape), narrow, A).reshape(x.shape)
        return dx, narrow.T @ rows, ((rows @ A.T).T @ grad).T

    return product(x, A, B)


def formed_product(
    x: mx.array, weight: mx.array, bias: mx.array | None, A: mx.array, B: mx.array, scaling: float
) -> mx.array:
    """x (W + s B A)^T + b in one product, without a gradient for W.

    Forming W + s B A costs r multiplications a weight, far less than a second pass over the activations. The backward
    pass forms it again rather than keep it. With g = dL/dy: dx = g (W + s B A), dA = s (g B)^T x, dB = s g^T (x A^T).
    """

    @mx.custom_function
    def product(x: mx.array, A: mx.array, B: mx.array) -> mx.array:
        formed = mx.addmm(weight, B, A, alpha=scaling)
        return x @ formed.T if bias is None else mx.addmm(bias, x, formed.T)

    @product.vjp
    def product_vjp(primals, cotangent, _):  # type: ignore[no-untyped-def]
        x, A, B = primals
        rows, grad = x.reshape(-1, x.shape[-1]), cotangent.reshape(-1, cotangent.shape[-1])
        # Spelled otherwise, so that the compiler does not find it equal to the forward's and keep that in between.
        dx = (grad @ mx.addmm(weight, scaling * B, A)).reshape(x.shape)
        dA = scaling * ((grad @ B).T @ rows)
        dB = scaling * ((rows @ A.T).T @ grad).T
        return dx, dA, dB

    return product(x, A, B)

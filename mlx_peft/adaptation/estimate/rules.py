"""In what the backends differ: what attention keeps, and what an update makes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mlx_peft.adaptation.estimate.devices import Kind
from mlx_peft.adaptation.estimate.operations import Operations
from mlx_peft.adaptation.estimate.tape import FLOAT32, Array, Calls, Store


class Fused(Operations):
    """A kernel that never holds the probabilities whole: it keeps q, k, v, what it gave, and a number a query.

    PyTorch's, on a CPU and on a GPU.
    """

    code = 16  # two whole numbers of 64 bits

    def patches(self, x: Array, weight: Array, bias: Array | None = None) -> Array:
        """A convolution, which keeps the pixels whatever of it is trained."""
        found = self.product(x, weight, bias, beside=x.size)
        if found.needs:
            self.keep(x)
        return found

    def attend(self, q: Array, k: Array, v: Array, bias: Array | None) -> Array:
        if bias is not None and bias.needs:  # the kernel has no gradient for it
            return formed(self, q, self.scaled(k), self.scaled(v), bias)
        batch, heads, asking, width = q.shape
        self.count(q, 2 * math.prod(q.shape) * k.shape[2], 2 * q.needs)
        beside = [] if bias is None else [bias]
        shape = (batch, asking, heads * width)
        found = self.run([q, k, v, *beside], shape, keeps=[q, k, v, *beside])
        if found.needs:
            self.keep(found)
            self.keep(Array((batch, heads, asking), 4, Store(batch * heads * asking * 4)))
        return found

    def reordered(self, x: Array) -> Array:
        """A copy: the kernel gives what it gives in the order of the queries."""
        return self.run([x], x.shape)


class Formed(Operations):
    """A graph that is computed once it is whole, by kernels of one operation each.

    MLX's: on a CPU, and on Metal while it trains, attention is one product after the other, which keeps the
    probabilities ``(batch, heads, queries, tokens)``. On a CPU so are norms and GELUs, and ten tasks of ten calls are
    handed to the thread that computes before one of them is waited for: what all of these read and write is there.
    """

    ahead = 120
    code = 8  # in a word of its own, and there beside the others of its word

    def attend(self, q: Array, k: Array, v: Array, bias: Array | None) -> Array:
        return formed(self, q, k, v, bias)

    def plus_product(self, y: Array, x: Array, weight: Array) -> Array:
        """Both at once."""
        weight = self.cast(weight, x.item)
        self.count(x, x.rows * weight.shape[0] * weight.shape[1], x.needs + weight.needs)
        keeps = [*([x] if weight.needs else []), *([weight] if x.needs else [])]
        return self.run([y, x, weight], y.shape, keeps=keeps, passes=x.size, calls=Calls(7, 10))

    def gelu(self, x: Array) -> Array:
        """A quotient of polynomials in float32: an array for their argument, its square and each, in both passes."""
        clipped = self.run([x], x.shape, item=FLOAT32, passes=0)
        square = self.run([clipped], x.shape, passes=0)
        above, below = (self.run([square], x.shape, passes=0) for _ in range(2))
        passes = 4 * square.size + x.size
        return self.run([x, above, below], x.shape, keeps=[x], passes=passes, calls=Calls(2, 11))

    def normed(self, x: Array, parameters: Sequence[Array] = ()) -> Array:
        """x less its mean is what is kept, in float32."""
        mean = self.run([x], (*x.shape[:-1], 1), item=FLOAT32)
        centred = self.run([x, mean], x.shape, item=FLOAT32)
        square = self.run([centred], x.shape, keeps=[centred])
        deviation = self.run([self.run([square], mean.shape)], mean.shape, calls=Calls(4, 6))
        return self.run([centred, deviation, *parameters], x.shape, keeps=[centred], item=x.item)

    def softmax(self, x: Array) -> Array:
        """Its result takes the place of x."""
        found = self.run([x], x.shape, behind=2 * x.size, replaces=True, calls=Calls(2, 6))
        if found.needs:
            self.keep(found)
        return found


class OnMetal(Formed):
    """The same with kernels for whole norms and GELUs, and ten command buffers, of an operation each where arrays are
    large, ahead. Written from MLX's source: no Mac has measured it."""

    ahead = 20

    def gelu(self, x: Array) -> Array:
        return self.activation(x)

    def normed(self, x: Array, parameters: Sequence[Array] = ()) -> Array:
        return Operations.normed(self, x, parameters)


def formed(tape: Operations, q: Array, k: Array, v: Array, bias: Array | None) -> Array:
    """Attention of which every operation is one of the tape's."""
    batch, heads, asking, width = q.shape
    apart = tape.run([q], q.shape, behind=2 * (q.size + k.size + v.size), calls=Calls(12, 20))
    scores = tape.matmul(apart, tape.view(k, (batch, heads, width, k.shape[2])))
    if bias is not None:
        scores = tape.add(scores, bias)
    found = tape.matmul(tape.softmax(scores), v)  # of which, and of k, a copy is multiplied
    return tape.run([found], (batch, asking, heads * width))


@dataclass(frozen=True)
class Rules:
    """A backend's.

    Attributes:
        tapes: of a step, by what computes.
        in_place: whether an update changes parameters and moments where they lie, and gradients are added up so; or
            makes new ones beside the old.
        idle_momentum: whether SGD has a slot for a momentum of 0.
    """

    tapes: Mapping[Kind, type[Operations]]
    in_place: bool
    idle_momentum: bool


RULES: Mapping[str, Rules] = {
    "torch": Rules({"cpu": Fused, "metal": Fused, "cuda": Fused}, in_place=True, idle_momentum=False),
    "mlx": Rules({"cpu": Formed, "metal": OnMetal, "cuda": Fused}, in_place=False, idle_momentum=True),
}
"""By the backend's name."""

"""The operations of a network on a tape: what each keeps, computes and calls."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

from mlx_peft.adaptation.estimate.tape import Array, Calls, Shape, Store, Tape


class Operations(Tape):
    """What both backends keep alike.

    A product keeps each factor whose other one is given a gradient; a sum keeps nothing. What two operations keep is
    kept once.

    Attributes:
        code: bytes that the code of a weight takes while it becomes a number.
    """

    code: ClassVar[int] = 0

    def view(self, x: Array, shape: Shape) -> Array:
        """Some of an array's numbers, or all of them, in another shape, where they lie."""
        return replace(x, shape=shape)

    def cast(self, x: Array, item: int) -> Array:
        """The same numbers in another precision."""
        return x if x.item == item else self.run([x], x.shape, item=item)

    def add(self, *terms: Array) -> Array:
        """Their sum, in the shape of the first."""
        return self.run(terms, terms[0].shape)

    def scaled(self, x: Array) -> Array:
        """x times a number, or a random mask that is as small as one."""
        return self.run([x], x.shape)

    def times(self, x: Array, y: Array) -> Array:
        """x * y, y broadcast; in the precision of the more precise one."""
        keeps = [*([x] if y.needs else []), *([y] if x.needs else [])]
        return self.run([x, y], x.shape, keeps=keeps, item=max(x.item, y.item))

    def product(self, x: Array, weight: Array, bias: Array | None = None, *, beside: int = 0) -> Array:
        """x W^T + b: x ``(..., in)``, W ``(out, in)``; W in the precision of x."""
        weight = self.cast(weight, x.item)
        self.count(x, x.rows * math.prod(weight.shape), x.needs + weight.needs)
        keeps = [*([x] if weight.needs else []), *([weight] if x.needs else [])]
        reads = [x, weight, *([] if bias is None else [bias])]
        calls = Calls(7, 5 * (x.needs + weight.needs) + 4 * (bias is not None and bias.needs))
        return self.run(reads, (*x.shape[:-1], weight.shape[0]), keeps=keeps, beside=beside, calls=calls)

    def patches(self, x: Array, weight: Array, bias: Array | None = None) -> Array:
        """The product of the patch embedding, of a copy of the pixels."""
        return self.product(self.run([x], x.shape), weight, bias)

    def matmul(self, a: Array, b: Array) -> Array:
        """a b, ``(..., m, k)`` and ``(..., k, n)``."""
        self.count(a, a.rows * a.width * b.width, a.needs + b.needs)
        keeps = [*([a] if b.needs else []), *([b] if a.needs else [])]
        return self.run([a, b], (*a.shape[:-1], b.width), keeps=keeps, calls=Calls(3, 3 * (a.needs + b.needs)))

    def activation(self, x: Array) -> Array:
        """A function of each number, whose gradient needs what it was taken of."""
        return self.run([x], x.shape, keeps=[x])

    def gelu(self, x: Array) -> Array:
        """The exact GELU."""
        return self.activation(x)

    def normed(self, x: Array, parameters: Sequence[Array] = ()) -> Array:
        """A norm over the last axis, which keeps what it read, and of each row a mean and a deviation."""
        found = self.run([x, *parameters], x.shape, keeps=[x])
        if found.needs:
            self.keep(Array((x.rows, 2), 4, Store(x.rows * 8)))
        return found

    def joined(self, parts: Sequence[Array], axis: int) -> Array:
        """Arrays beside one another along an axis."""
        shape = list(parts[0].shape)
        shape[axis] = sum(part.shape[axis] for part in parts)
        return parts[0] if len(parts) == 1 else self.run(parts, tuple(shape))

    def softmax(self, x: Array) -> Array:
        """Over the last axis; its gradient needs what it gave."""
        found = self.run([x], x.shape)
        if found.needs:
            self.keep(found)
        return found

    def attend(self, q: Array, k: Array, v: Array, bias: Array | None) -> Array:
        """softmax(q k^T / sqrt(d) + bias) v for ``(batch, heads, tokens, d)``, heads joined."""
        raise NotImplementedError

    def plus_product(self, y: Array, x: Array, weight: Array) -> Array:
        """y + x W^T."""
        return self.add(y, self.product(x, weight))

    def reordered(self, x: Array) -> Array:
        """What attention gave to queries that lie head by head, for whoever reads it token by token: x itself."""
        return x

    def count(self, x: Array, multiplied: int, back: int) -> None:
        """Counts the operations of a product: so many multiplications, and as many again for each factor's gradient."""
        self.forward[x.item] += 2 * multiplied
        self.backward[x.item] += 2 * multiplied * back

"""What goes from block to block: tokens, with what is known of them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import mlx.core as mx

from mlx_peft.vit.places import PATCH, Kind, Kinds, Places

Arrays = dict[str, mx.array]


@dataclass(frozen=True)
class Tokens:
    """The tokens of a batch of images, alike in number and kind for all of them.

    Attributes:
        x: ``(batch, tokens, dim)``.
        places: what stands where among them.
        indices: whole numbers ``(batch, patches)``: where in the grid, counted row by row, each patch token stands;
            None: all of them are there, in order.
        sizes: float32 ``(batch, patches)``: how many patches each patch token stands for; None: one.
        aside: ``(batch, n, dim)``: patch tokens that go round some blocks; None: there are none.
        gate: float32 ``(batch, tokens, 1)``: 0 for the tokens that go past the MLP that is next, 1 for others; None: 1.
        passed: float32 ``(batch, routers)``: the share of the patch tokens that each router so far has let through;
            None: there was none.
        side: ``(batch, tokens, width)``: what a narrower network has made of them so far; None: there is none.
    """

    x: mx.array
    places: Places
    indices: mx.array | None = None
    sizes: mx.array | None = None
    aside: mx.array | None = None
    gate: mx.array | None = None
    passed: mx.array | None = None
    side: mx.array | None = None

    def holding(self, x: mx.array) -> Tokens:
        """The same tokens with other values."""
        return replace(self, x=x)

    def only(self, kinds: Kinds | None) -> Tokens:
        """The tokens of some kinds; None: all."""
        if kinds is None:
            return self
        x, places = taken(self.x, self.places, kinds), self.places.only(kinds)
        return replace(self, x=x, places=places) if PATCH in kinds else Tokens(x, places, passed=self.passed)

    def first(self, kind: Kind) -> mx.array:
        """The first token of a kind, ``(batch, dim)``."""
        return self.x[:, self.places.span(kind).start]

    def inserted(self, kind: Kind, x: mx.array, before: Kind | None = None) -> Tokens:
        """With tokens of a kind that was not there, before those of another; None: behind all of them."""
        at = len(self.places) if before is None else self.places.span(before).start
        parts = [part for part in (self.x[:, :at], x, self.x[:, at:]) if part.shape[1]]
        places = self.places.inserted(kind, x.shape[1], before)
        return replace(self, x=mx.concatenate(parts, axis=1), places=places)

    def gathered(self, which: mx.array, x: mx.array | None = None) -> Tokens:
        """Of the patch tokens those that are named, in the order in which they are; all others stay.

        Args:
            which: whole numbers ``(batch, n)``, counted among the patch tokens that there are.
            x: what they all have become, ``(batch, tokens, dim)``; None: what they were.
        """
        which = _fixed(which)
        indices = which if self.indices is None else mx.take_along_axis(self.indices, which, axis=1)
        sizes = None if self.sizes is None else mx.take_along_axis(self.sizes, which, axis=1)
        x = rows(self.x, self.among_all(which)) if x is None else x
        return replace(self, x=x, places=self.places.resized(PATCH, which.shape[1]), indices=indices, sizes=sizes)

    def among_all(self, which: mx.array) -> mx.array:
        """``which`` as ``gathered`` has it, with all that are no patch tokens around: where they stand among all."""
        span, batch = self.places.span(PATCH), len(which)
        before, behind = (mx.arange(*ends) for ends in ((0, span.start), (span.stop, len(self.places))))
        parts = [mx.broadcast_to(before, (batch, len(before))), span.start + which]
        return mx.concatenate([*parts, mx.broadcast_to(behind, (batch, len(behind)))], axis=1)

    @property
    def patches(self) -> mx.array:
        """The patch tokens, ``(batch, patches, dim)``."""
        return self.x[:, self.places.span(PATCH)]

    def reduced(self, patches: mx.array, indices: mx.array | None, sizes: mx.array | None) -> Tokens:
        """With other patch tokens in the place of those that there are, and what is known of them."""
        span = self.places.span(PATCH)
        parts = [part for part in (self.x[:, : span.start], patches, self.x[:, span.stop :]) if part.shape[1]]
        places = self.places.resized(PATCH, patches.shape[1])
        indices = None if indices is None else _fixed(indices)
        return replace(self, x=mx.concatenate(parts, axis=1), places=places, indices=indices, sizes=sizes)

    def gated(self, through: mx.array) -> Tokens:
        """The same, with some patch tokens going past the next MLP: ``through (batch, patches)`` is 0 for those."""
        batch = len(through)
        parts = [through if kind == PATCH else mx.ones((batch, count)) for kind, count in self.places.runs]
        share = through.mean(axis=1, keepdims=True)
        passed = share if self.passed is None else mx.concatenate([self.passed, share], axis=1)
        return replace(self, gate=mx.concatenate(parts, axis=1)[..., None], passed=passed)

    def fed(self, x: mx.array, *beside: mx.array) -> Tokens:
        """With what the MLP makes of them added, ``(batch, tokens, dim)``: to those that go through it; and with what
        is beside the MLP added to all."""
        branch = x if self.gate is None else self.gate.astype(x.dtype) * x
        return replace(self, x=summed(self.x, branch, *beside), gate=None)

    def weights(self) -> mx.array | None:
        """How many patches each token counts for, float32 ``(batch, tokens)``: a protected one for one."""
        if self.sizes is None:
            return None
        batch = self.x.shape[0]
        parts = [self.sizes if kind == PATCH else mx.ones((batch, count)) for kind, count in self.places.runs]
        return mx.concatenate(parts, axis=1)

    def mean(self) -> mx.array:
        """The mean of what the tokens stand for, ``(batch, dim)``; in float32 inside."""
        x = self.x.astype(mx.float32)  # in float16 the sum of many tokens overflows
        weights = self.weights()
        if weights is None:
            return x.mean(axis=1).astype(self.x.dtype)
        shares = weights / weights.sum(axis=1, keepdims=True)
        return (x * shares[..., None]).sum(axis=1).astype(self.x.dtype)

    def arrays(self) -> Arrays:
        """What of it is computed, by name; ``with_arrays`` is the reverse."""
        known = {
            "side": self.side, "x": self.x, "sizes": self.sizes, "aside": self.aside, "passed": self.passed,
            "indices": self.indices,
        }  # fmt: skip
        # MLX's checkpoint gives outputs without a gradient no cotangent, and all behind them the wrong ones: the last
        # are whole numbers, and beside a side network x.
        return {name: array for name, array in known.items() if array is not None}

    def with_arrays(self, arrays: Arrays) -> Tokens:
        """The same tokens, of these arrays."""
        fixed = {name: _fixed(array) if name == "indices" else array for name, array in arrays.items()}
        return replace(self, **fixed)


def summed(x: mx.array, branch: mx.array, *beside: mx.array) -> mx.array:
    """x + branch + what is beside it, rounded once to the dtype of x: a small term would be lost in a sum that was
    rounded already."""
    if not beside:
        return (x + branch).astype(x.dtype)
    total = x.astype(mx.float32) + branch
    for term in beside:
        total = total + term
    return total.astype(x.dtype)


def rows(x: mx.array, which: mx.array) -> mx.array:
    """Rows ``which (batch, n)`` of each image's ``x (batch, rows, dim)``."""
    batch, count, dim = x.shape
    flat = _fixed(which + count * mx.arange(batch)[:, None])  # whole rows are copied, and not number by number
    return x.reshape(-1, dim)[flat]


def taken(x: mx.array, places: Places, kinds: Kinds | None, axis: int = 1) -> mx.array:
    """The tokens of some kinds, of an array that has all of them along an axis; None: x itself."""
    if kinds is None:
        return x
    parts = [x[(slice(None),) * axis + (span,)] for span in places.spans(kinds)]
    return parts[0] if len(parts) == 1 else mx.concatenate(parts, axis=axis)


def _fixed(indices: mx.array) -> mx.array:
    """Whole numbers without a gradient: MLX refuses one through what is gathered by them, instead of passing none."""
    return mx.stop_gradient(indices)

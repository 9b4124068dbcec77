"""What goes from block to block: tokens, with what is known of them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mlx_peft.vit.places import PATCH, Kind, Kinds, Places

Arrays = dict[str, Tensor]


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

    x: Tensor
    places: Places
    indices: Tensor | None = None
    sizes: Tensor | None = None
    aside: Tensor | None = None
    gate: Tensor | None = None
    passed: Tensor | None = None
    side: Tensor | None = None

    def holding(self, x: Tensor) -> Tokens:
        """The same tokens with other values."""
        return replace(self, x=x)

    def only(self, kinds: Kinds | None) -> Tokens:
        """The tokens of some kinds; None: all."""
        if kinds is None:
            return self
        x, places = taken(self.x, self.places, kinds), self.places.only(kinds)
        return replace(self, x=x, places=places) if PATCH in kinds else Tokens(x, places, passed=self.passed)

    def first(self, kind: Kind) -> Tensor:
        """The first token of a kind, ``(batch, dim)``."""
        return self.x[:, self.places.span(kind).start]

    def inserted(self, kind: Kind, x: Tensor, before: Kind | None = None) -> Tokens:
        """With tokens of a kind that was not there, before those of another; None: behind all of them."""
        at = len(self.places) if before is None else self.places.span(before).start
        parts = [part for part in (self.x[:, :at], x, self.x[:, at:]) if part.shape[1]]
        places = self.places.inserted(kind, x.shape[1], before)
        return replace(self, x=torch.cat(parts, dim=1), places=places)

    def gathered(self, which: Tensor, x: Tensor | None = None) -> Tokens:
        """Of the patch tokens those that are named, in the order in which they are; all others stay.

        Args:
            which: whole numbers ``(batch, n)``, counted among the patch tokens that there are.
            x: what they all have become, ``(batch, tokens, dim)``; None: what they were.
        """
        indices = which if self.indices is None else self.indices.gather(1, which)
        sizes = None if self.sizes is None else self.sizes.gather(1, which)
        x = rows(self.x, self.among_all(which)) if x is None else x
        return replace(self, x=x, places=self.places.resized(PATCH, which.shape[1]), indices=indices, sizes=sizes)

    def among_all(self, which: Tensor) -> Tensor:
        """``which`` as ``gathered`` has it, with all that are no patch tokens around: where they stand among all."""
        span, batch = self.places.span(PATCH), len(which)
        before, behind = (
            torch.arange(*ends, device=which.device) for ends in ((0, span.start), (span.stop, len(self.places)))
        )
        return torch.cat([before.expand(batch, -1), span.start + which, behind.expand(batch, -1)], dim=1)

    @property
    def patches(self) -> Tensor:
        """The patch tokens, ``(batch, patches, dim)``."""
        return self.x[:, self.places.span(PATCH)]

    def reduced(self, patches: Tensor, indices: Tensor | None, sizes: Tensor | None) -> Tokens:
        """With other patch tokens in the place of those that there are, and what is known of them."""
        span = self.places.span(PATCH)
        parts = [part for part in (self.x[:, : span.start], patches, self.x[:, span.stop :]) if part.shape[1]]
        places = self.places.resized(PATCH, patches.shape[1])
        return replace(self, x=torch.cat(parts, dim=1), places=places, indices=indices, sizes=sizes)

    def gated(self, through: Tensor) -> Tokens:
        """The same, with some patch tokens going past the next MLP: ``through (batch, patches)`` is 0 for those."""
        batch = len(through)
        parts = [through if kind == PATCH else through.new_ones(batch, count) for kind, count in self.places.runs]
        share = through.mean(dim=1, keepdim=True)
        passed = share if self.passed is None else torch.cat([self.passed, share], dim=1)
        return replace(self, gate=torch.cat(parts, dim=1)[..., None], passed=passed)

    def fed(self, x: Tensor, *beside: Tensor) -> Tokens:
        """With what the MLP makes of them added, ``(batch, tokens, dim)``: to those that go through it; and with what
        is beside the MLP added to all."""
        branch = x if self.gate is None else self.gate.to(x.dtype) * x
        return replace(self, x=summed(self.x, branch, *beside), gate=None)

    def weights(self) -> Tensor | None:
        """How many patches each token counts for, float32 ``(batch, tokens)``: a protected one for one."""
        if self.sizes is None:
            return None
        batch, sizes = self.x.shape[0], self.sizes
        parts = [sizes if kind == PATCH else sizes.new_ones(batch, count) for kind, count in self.places.runs]
        return torch.cat(parts, dim=1)

    def mean(self) -> Tensor:
        """The mean of what the tokens stand for, ``(batch, dim)``; in float32 inside."""
        weights = self.weights()
        if weights is None:
            return self.x.mean(dim=1)  # whose sum is in float32
        shares = weights / weights.sum(dim=1, keepdim=True)
        return (self.x.float() * shares[..., None]).sum(dim=1).to(self.x.dtype)

    def arrays(self) -> Arrays:
        """What of it is computed, by name; ``with_arrays`` is the reverse."""
        known = {
            "side": self.side, "x": self.x, "sizes": self.sizes, "aside": self.aside, "passed": self.passed,
            "indices": self.indices,
        }  # fmt: skip
        return {name: array for name, array in known.items() if array is not None}

    def with_arrays(self, arrays: Arrays) -> Tokens:
        """The same tokens, of these arrays."""
        return replace(self, **arrays)


def summed(x: Tensor, branch: Tensor, *beside: Tensor) -> Tensor:
    """x + branch + what is beside it, rounded once to the dtype of x: a small term would be lost in a sum that was
    rounded already."""
    if not beside:
        return (x + branch).to(x.dtype)
    total = x.float() + branch
    for term in beside:
        total = total + term
    return total.to(x.dtype)


def rows(x: Tensor, which: Tensor) -> Tensor:
    """Rows ``which (batch, n)`` of each image's ``x (batch, rows, dim)``."""
    batch, count, dim = x.shape
    flat = which + count * torch.arange(batch, device=which.device)[:, None]  # whole rows, and not number by number
    return x.reshape(-1, dim).index_select(0, flat.flatten()).view(*which.shape, dim)


def taken(x: Tensor, places: Places, kinds: Kinds | None, axis: int = 1) -> Tensor:
    """The tokens of some kinds, of an array that has all of them along an axis; None: x itself."""
    if kinds is None:
        return x
    parts = [x[(slice(None),) * axis + (span,)] for span in places.spans(kinds)]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=axis)

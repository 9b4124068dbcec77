"""What stands where among a model's tokens: known before there is an image, so that no array need be asked."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

Kind = Literal["class", "distillation", "register", "prompt", "patch"]
Kinds = Collection[Kind]

PATCH: Kind = "patch"
"""The only kind that is of the image, and that may be dropped or merged: all others are protected."""

PARAMETERS: dict[Kind, str] = {"class": "cls_token", "distillation": "dist_token", "register": "reg_token"}
"""Of the kinds that a model has learnt before any method: the parameter by timm's name, in timm's order."""


@dataclass(frozen=True)
class Places:
    """Runs of tokens of one kind, in the order of the tokens.

    Attributes:
        runs: kinds and how many tokens of each; a kind has one run at the most.
    """

    runs: tuple[tuple[Kind, int], ...]

    def __len__(self) -> int:
        """How many tokens there are."""
        return sum(count for _, count in self.runs)

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """Those that there are, in order."""
        return tuple(kind for kind, _ in self.runs)

    def count(self, kind: Kind) -> int:
        """How many tokens of a kind there are."""
        return dict(self.runs).get(kind, 0)

    def span(self, kind: Kind) -> slice:
        """Where the tokens of a kind stand. Raises KeyError where there are none."""
        ends = dict(zip(self.kinds, accumulate(count for _, count in self.runs), strict=True))
        return slice(ends[kind] - self.count(kind), ends[kind])

    def spans(self, kinds: Kinds) -> list[slice]:
        """Where the tokens of some kinds stand, in order; neighbours as one."""
        found: list[slice] = []
        for span in (self.span(kind) for kind in self.kinds if kind in kinds):
            if found and found[-1].stop == span.start:
                found[-1] = slice(found[-1].start, span.stop)
            else:
                found.append(span)
        return found

    def only(self, kinds: Kinds) -> Places:
        """What stands where once the tokens of all other kinds are gone."""
        return Places(tuple(run for run in self.runs if run[0] in kinds))

    def without(self, kind: Kind) -> tuple[Kind, ...]:
        """All kinds but one."""
        return tuple(other for other in self.kinds if other != kind)

    def inserted(self, kind: Kind, count: int, before: Kind | None = None) -> Places:
        """With so many tokens of a kind that was not there, before those of another; None: behind all of them."""
        if kind in self.kinds:
            raise ValueError(f"there are tokens of the kind {kind!r} already")
        at = len(self.runs) if before is None else self.kinds.index(before)
        return Places((*self.runs[:at], (kind, count), *self.runs[at:]))

    def resized(self, kind: Kind, count: int) -> Places:
        """With another number of tokens of a kind."""
        return Places(tuple((other, count if other == kind else n) for other, n in self.runs))

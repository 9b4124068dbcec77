"""Images that turn out broken while a large set is read: left out of their batch, and never in silence.

A set that is too large to be tried on opening meets them at hour nine. The batch then has one image less, which counts
nothing in the loss or in a metric; the splits, and with them the identity of a run, stay those of the files that are
listed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from mlx_peft.core.errors import Command, UserError

FEW, SHARE = 100, 0.01
"""Broken images that an epoch may have, whichever is more: so many, or this share of it. Beyond, the disk is gone."""

ALL = 8
"""A batch of at least so many images may not lose all; the last of an epoch may have one image, and that broken."""


@dataclass(frozen=True)
class Broken:
    """An image that could not be read: in which split it is, its identifier there, and why."""

    split: str
    image: str
    reason: str


@dataclass(eq=False)
class Unread:
    """The images of a set that could not be read while it was used, each once."""

    found: dict[tuple[str, str], Broken] = field(default_factory=dict)
    heard: Callable[[Broken], object] = lambda broken: None
    """Called with each when it is met first, by whoever reads the batches."""

    def add(self, broken: Broken) -> None:
        if (key := (broken.split, broken.image)) not in self.found:
            self.found[key] = broken
            self.heard(broken)

    @property
    def splits(self) -> list[str]:
        """Those that have some."""
        return sorted({one.split for one in self.found.values()})

    def of(self, split: str) -> list[Broken]:
        """Those of a split, by their identifiers."""
        return sorted((one for one in self.found.values() if one.split == split), key=lambda one: one.image)


def check_share(split: str, lost: int, there: int, batch: int, epoch: int, reasons: Sequence[str | None]) -> None:
    """Raises UserError where so many images cannot be read that it is no matter of single files.

    Args:
        lost: images of the epoch so far; there: images that are left of a ``batch``; epoch: all that it has.
        reasons: of the batch's images.
    """
    if not there and batch >= ALL:
        found = f"none of the {batch} images of a batch can be read"
    elif lost > max(FEW, SHARE * epoch):
        found = f"{lost:,} of an epoch's {epoch:,} images cannot be read"
    else:
        return
    reason = next(filter(None, reasons))
    command = Command("to read them all", ("data", "check"))
    raise UserError(f"{split}: {found} ({reason}): is the disk still there?", command=command)

"""What LoRA's A and B start from: the names that ``init`` chooses from, and what is known of each without a weight.

The equations are in ``adaptation.factors``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

from mlx_peft.config.methods.lowrank import fits
from mlx_peft.core.errors import UserError
from mlx_peft.vit.sites import Site

InitName = Literal["kaiming", "pissa", "olora", "orthogonal"]


def any_rank(rank: int, site: Site) -> None:
    """No rank is refused."""


def even(rank: int, site: Site) -> None:
    """Raises UserError where a rank has no two halves."""
    if rank % 2:
        raise UserError(f"method: rank {rank} of {site.path} is odd, and init: orthogonal halves it: make it even")


class Init(NamedTuple):
    """A start of A and B.

    Attributes:
        counts: whether the update counts from the start: W is used less what A and B make of it then, and they are kept
            beside it under the start's own name (``pissa_A``, ``pissa_B``).
        check: raises UserError where a layer's rank cannot be started so.
    """

    counts: bool
    check: Callable[[int, Site], None]


INITS: dict[InitName, Init] = {
    "kaiming": Init(counts=False, check=any_rank),
    "pissa": Init(counts=True, check=fits),
    "olora": Init(counts=True, check=fits),
    "orthogonal": Init(counts=False, check=even),
}
"""The registry of starts: with ``adaptation.factors.STARTS``, nothing else lists them."""

KEPT = tuple(f"{name}_{factor}" for name, init in INITS.items() if init.counts for factor in "AB")
"""The last names of all starts that are kept."""

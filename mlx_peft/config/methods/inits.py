"""What LoRA's A and B start from: the names that ``init`` chooses from, and what is known of each without a weight.

The equations are in ``adaptation.factors``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

from pydantic import Field

from mlx_peft.config.methods.base import Given
from mlx_peft.config.methods.lowrank import fits
from mlx_peft.config.section import Section
from mlx_peft.core.bounds import LARGEST, Steps
from mlx_peft.core.errors import UserError
from mlx_peft.vit.sites import Site

InitName = Literal["kaiming", "pissa", "olora", "orthogonal", "loftq", "eva"]


class LoftQ(Section):
    """The turns of LoftQ: see ``codes.loftq``."""

    steps: Steps = Field(5, description="turns of codes, and of A and B beside them; 1: plain codes")


class EVA(Section):
    """How EVA looks at training batches, and what it makes of them: see ``adaptation.eva``."""

    rho: float = Field(2.0, ge=1, le=LARGEST, description="a layer's rank becomes at most so many times what it was")
    batches: Steps = Field(32, description="training batches that are looked at, at most, of the first epoch")
    tau: float = Field(
        0.99, ge=0, le=1, description="cosine between two batches' directions, from which a layer is done"
    )
    whiten: bool = Field(False, description="a direction is divided by the root of its singular value")


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
        codes: whether the codes below an adapter are its own, and kept with it.
        given: what it is made from beside the model; a model on its own starts as ``kaiming`` until it is given that.
    """

    counts: bool
    check: Callable[[int, Site], None]
    codes: bool = False
    given: Given | None = None


INITS: dict[InitName, Init] = {
    "kaiming": Init(counts=False, check=any_rank),
    "pissa": Init(counts=True, check=fits),
    "olora": Init(counts=True, check=fits),
    "orthogonal": Init(counts=False, check=even),
    "loftq": Init(counts=False, check=fits, codes=True, given="weights"),
    "eva": Init(counts=False, check=any_rank, given="images"),
}
"""The registry of starts: with ``adaptation.factors.STARTS``, nothing else lists them."""

KEPT = tuple(f"{name}_{factor}" for name, init in INITS.items() if init.counts for factor in "AB")
"""The last names of all starts that are kept."""

"""What terms are, and what the methods' own say them with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from mlx_peft.vit.architecture import Architecture
from mlx_peft.vit.parameters import is_head
from mlx_peft.vit.shapes import shapes
from mlx_peft.vit.sites import PARTS, Site

Array = np.ndarray
"""Float32."""

Layers = dict[str, dict[str, Array]]
"""Terms by the path of a layer or a block, and by their names."""

THIRDS = tuple(f"_{part}" for part in PARTS)
"""The endings of A, G and B of a third of a fused qkv's outputs, from the first on."""


class Entering(NamedTuple):
    """What prompts do at one block: the rows of a batch must be alike in this, for they have equally many tokens.

    Attributes:
        block: its path.
        tokens: how many enter.
        leave: whether they leave behind it.
    """

    block: str
    tokens: int
    leave: bool


@dataclass(frozen=True)
class Terms:
    """An adapter without its head.

    Attributes:
        layers: ``into`` ``(in,)``; ``A`` ``(in, r)`` or ``G`` ``(in / g, r)``, and ``B`` ``(r, out)``, with all factors
            in it; ``A_q``, ``B_q`` and so on of a third of the outputs; ``gain``, ``shift``, ``weight`` ``(out,)``. Of
            a block ``prompts`` ``(p, dim)``; ``down`` ``(dim, b)``, ``down_bias``, ``up`` ``(b, dim)``, ``up_bias``,
            and the same behind it, ``after_down`` and so on; of what its halves end in ``down`` and so on.
        prompts: at the blocks that some enter, or leave.
    """

    layers: Layers
    prompts: tuple[Entering, ...] = ()


class Plain(Protocol):
    """The base, as far as an adapter's terms count from it."""

    def dense(self, path: str) -> Array:
        """A linear layer's weight, ``(out, in)``; of codes, what they stand for."""

    def vector(self, name: str) -> Array | None:
        """A bias, or a norm's weight, by its name; None where the layer has none."""


BRANCHES = ("ls1", "ls2")
"""What a block's attention and its MLP end in, which may have a bottleneck behind it."""


def places(architecture: Architecture) -> list[str]:
    """The paths of all layers that may have terms: those with a weight, heads apart."""
    names = (name for name in shapes(architecture, num_classes=1) if not is_head(name))
    return [name.removesuffix(".weight") for name in names if name.endswith(".weight")]


def factor_pairs(site: Site, A: Array, B: Array) -> list[tuple[Array, Array]]:
    """A ``(in, r)`` and B ``(r, out)`` of the whole layer, or of each of its parts, from those that lie stacked."""
    both = zip(np.split(A, site.count), np.split(B, site.count), strict=True)
    return [(held(a.T), held(b.T)) for a, b in both]


def named_pairs(site: Site, pairs: list[tuple[Array, Array]], names: str = "AB") -> dict[str, Array]:
    endings = [f"_{part}" for part in site.parts] or [""]
    return {
        f"{name}{ending}": matrix
        for ending, pair in zip(endings, pairs, strict=True)
        for name, matrix in zip(names, pair, strict=True)
    }


def held(matrix: np.ndarray) -> Array:
    """Float32 in C order, as it is multiplied."""
    return np.ascontiguousarray(matrix, np.float32)

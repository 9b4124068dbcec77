"""q, k and v on layers of their own, as other libraries have them, and as parts of timm's fused qkv.

The separate layers are called ``blocks.3.attn.q`` here. What adapts some of them is what adapts these parts, exactly.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np

from mlx_peft.vit.sites import PARTS

PART = re.compile(rf"(.+\.attn\.)({'|'.join(PARTS)})")

T = TypeVar("T")


def fused(layer: str) -> str:
    """The layer that has its rows: ``blocks.3.attn.qkv`` for a separate q; any other is its own."""
    match = PART.fullmatch(layer)
    return layer if match is None else f"{match[1]}qkv"


def is_separate(layer: str) -> bool:
    """Whether it is q, k or v, on a layer of its own."""
    return PART.fullmatch(layer) is not None


def part_of(layer: str) -> str:
    """Which of q, k and v a separate layer is."""
    return layer.rpartition(".")[2]


def separate(layer: str, part: str) -> str:
    """The name of a part of a fused qkv, on a layer of its own."""
    return f"{layer.removesuffix('qkv')}{part}"


def together(layers: Mapping[str, T]) -> dict[str, list[T]]:
    """What belongs to each fused layer: of its parts, in their order, or of itself alone."""
    found: dict[str, dict[str, T]] = {}
    for layer, held in layers.items():
        found.setdefault(fused(layer), {})[layer] = held
    return {layer: [held for _, held in sorted(own.items(), key=_place)] for layer, own in found.items()}


def rows(whole: np.ndarray, layer: str, parts: Sequence[str]) -> dict[str, np.ndarray]:
    """The rows that each separate layer has, by its name: of the parts that are adapted, or of all three.

    A layer that is not fused has all rows. Raises ValueError where they are no equal shares.
    """
    names = [separate(layer, part) for part in parts or PARTS] if layer.endswith(".qkv") else [layer]
    if len(whole) % len(names):
        raise ValueError(f"{layer} has {len(whole)} rows, which are no {len(names)} equal shares")
    return dict(zip(names, np.split(whole, len(names)), strict=True))


def shared(stacked: np.ndarray, layer: str, parts: Sequence[str]) -> dict[str, np.ndarray]:
    """What each separate layer has of what is one a part, as A is: its own, or where the whole is adapted, the same."""
    if parts or not layer.endswith(".qkv"):
        return rows(stacked, layer, parts)
    return {separate(layer, part): stacked for part in PARTS}


def stacked(shares: Sequence[np.ndarray], name: str) -> np.ndarray:
    """What each part has, one after the other. Raises ValueError where they are not of one shape."""
    if len({share.shape for share in shares}) > 1:
        shapes = ", ".join(str(share.shape) for share in shares)
        raise ValueError(f"the parts of {name} have different shapes: {shapes}")
    return np.concatenate(shares)


def padded(matrix: np.ndarray, rank: int) -> np.ndarray:
    """More rows, of zeros: so many in all."""
    return np.pad(matrix, ((0, rank - len(matrix)), (0, 0))) if rank > len(matrix) else matrix


def _place(item: tuple[str, object]) -> int:
    match = PART.fullmatch(item[0])
    return -1 if match is None else PARTS.index(match[2])

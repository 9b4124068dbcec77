"""What is of some of q, k and v put in its place among the outputs of the fused qkv."""

from __future__ import annotations

import torch
from torch import Tensor

from mlx_peft.vit.sites import PARTS


def among_all(rows: Tensor, parts: tuple[str, ...], fill: float = 0.0) -> Tensor:
    """The parts' rows, the first axis, in their places, and ``fill`` in the others'; those of a whole layer as is."""
    if not parts:
        return rows
    own = dict(zip(parts, rows.chunk(len(parts)), strict=True))
    rest = torch.full_like(own[parts[0]], fill)
    return torch.cat([own.get(part, rest) for part in PARTS])


def placed(B: Tensor, parts: tuple[str, ...]) -> Tensor:
    """B as one ``(out, r)`` matrix; with parts ``(out, parts r)``, each part's block in its rows and columns."""
    if not parts:
        return B
    blocks = B.chunk(len(parts))
    return torch.cat([among_all(block, (part,)) for part, block in zip(parts, blocks, strict=True)], dim=1)

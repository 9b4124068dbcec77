"""What is of some of q, k and v put in its place among the outputs of the fused qkv."""

from __future__ import annotations

import mlx.core as mx

from mlx_peft.vit.sites import PARTS


def among_all(rows: mx.array, parts: tuple[str, ...], fill: float = 0.0) -> mx.array:
    """The parts' rows, the first axis, in their places, and ``fill`` in the others'; those of a whole layer as is."""
    if not parts:
        return rows
    own = dict(zip(parts, mx.split(rows, len(parts)), strict=True))
    rest = mx.full(own[parts[0]].shape, fill)
    return mx.concatenate([own.get(part, rest) for part in PARTS])


def placed(B: mx.array, parts: tuple[str, ...]) -> mx.array:
    """B as one ``(out, r)`` matrix; with parts ``(out, parts r)``, each part's block in its rows and columns."""
    if not parts:
        return B
    blocks = mx.split(B, len(parts))
    return mx.concatenate([among_all(block, (part,)) for part, block in zip(parts, blocks, strict=True)], axis=1)

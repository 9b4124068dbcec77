"""The parts of a fused qkv, of which PEFT knows none: an adapter of some becomes one of the whole, and back."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from mlx_peft.vit.sites import PARTS


def adapted(targets: Collection[str]) -> tuple[str, ...]:
    """Which of q, k and v are among the targets, in this order."""
    return tuple(part for part in PARTS if part in targets)


def parts_of(targets: Collection[str], layer: str) -> tuple[str, ...]:
    """Which of q, k and v of a layer are adapted; empty for all of it."""
    return adapted(targets) if layer.endswith(".qkv") else ()


def others(parts: Collection[str]) -> tuple[str, ...]:
    """Those of q, k and v that are not."""
    return tuple(part for part in PARTS if part not in parts)


def note(targets: Collection[str], names: Collection[str], there: str, moves: str) -> list[str]:
    """For a person: what parts are to PEFT, and what it would move were it to train further; nothing without parts.

    Nothing either where no tensor's name is of a qkv: q, k and v are layers of their own there, to PEFT too.
    """
    if not (parts := adapted(targets)) or not any(".qkv." in name for name in names):
        return []
    return [
        f"to Hugging Face PEFT, what adapts {' and '.join(parts)} is one adapter of the whole qkv{there}; trained "
        f"further there, {moves}"
    ]


def spread(values: np.ndarray, parts: Sequence[str], fill: float, among: Sequence[str] = PARTS) -> np.ndarray:
    """The parts' values, one after the other, put in their places ``among`` all parts; ``fill`` for the others."""
    rows = values.reshape(len(parts), -1)
    whole = np.full((len(among), rows.shape[1]), fill, np.float32)
    whole[[among.index(part) for part in parts]] = rows
    return whole.ravel()


def picked(whole: np.ndarray, parts: Sequence[str], among: Sequence[str] = PARTS) -> np.ndarray:
    """The parts' own values, one after the other. Raises ValueError where ``whole`` has not as many of each part."""
    if whole.ndim != 1 or len(whole) % len(among):
        raise ValueError(
            f"a tensor of {len(among)} parts should be a vector of as many equal parts, not of the shape {whole.shape}"
        )
    own: np.ndarray = whole.reshape(len(among), -1)[[among.index(part) for part in parts]].ravel()
    return own


def gathered(whole: np.ndarray, parts: Sequence[str], fill: float, among: Sequence[str] = PARTS) -> np.ndarray:
    """The inverse of ``spread``. Raises ValueError where another part has other values than ``fill``."""
    own = picked(whole, parts, among)
    if (picked(whole, [part for part in among if part not in parts], among) != fill).any():
        raise ValueError(f"what is not of {', '.join(parts)} should be {fill:g}")
    return own


def placed(B: np.ndarray, parts: tuple[str, ...]) -> np.ndarray:
    """The parts' B ``(parts * d, r)`` as ``(3 d, parts * r)``, zero elsewhere; that of a whole layer as it is."""
    if not parts:
        return B
    height, rank = len(B) // len(parts), B.shape[1]
    whole = np.zeros((len(PARTS), height, len(parts), rank), np.float32)
    for index, part in enumerate(parts):
        whole[PARTS.index(part), :, index] = B[index * height : (index + 1) * height]
    return whole.reshape(len(PARTS) * height, len(parts) * rank)


def taken(whole: np.ndarray, parts: tuple[str, ...]) -> np.ndarray:
    """The inverse of ``placed``."""
    if not parts:
        return np.ascontiguousarray(whole)
    blocks = whole.reshape(len(PARTS), len(whole) // len(PARTS), len(parts), -1)
    return np.concatenate([blocks[PARTS.index(part), :, index] for index, part in enumerate(parts)])

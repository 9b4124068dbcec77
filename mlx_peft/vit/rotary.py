"""Rotary positions as arithmetic: by which angles the channels of a patch's queries and keys are turned.

A head's d channels are turned in d/2 pairs: (a, b) becomes (a cos t - b sin t, b cos t + a sin t). A patch at (y, x)
turns the first d/4 pairs by t = y w_i and the others by t = x w_i, w_i = temperature^(-i / (d/4)). Su et al. 2021
(arXiv 2104.09864), over two axes as EVA-02 (Fang et al. 2023, arXiv 2303.11331) and DINOv3 (Simeoni et al. 2025, arXiv
2508.10104) have them. All is computed in float32 and in timm's order.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from mlx_peft.vit.architecture import Architecture

Floats = NDArray[np.float32]


def coordinates(architecture: Architecture) -> Floats:
    """Where the patches stand, row by row, ``(grid^2, 2)``; the axis that comes first as ``rope_grid_indexing`` says.

    ``index``: i + offset, scaled to the grid of side ``ref_feat_shape``. ``centered``: 2 (i + 1/2 + offset) / side - 1.
    """
    side, offset = architecture.grid_size, np.float32(architecture.rope_grid_offset)
    along = np.arange(side, dtype=np.float32)
    if architecture.rope_grid == "centered":
        along = 2 * ((along + np.float32(0.5) + offset) / np.float32(side)) - 1
    else:
        along = along + offset
    if architecture.ref_feat_shape is not None and architecture.rope_grid == "index":
        along = along / np.float32(side) * np.float32(architecture.ref_feat_shape)
    grid = np.stack(np.meshgrid(along, along, indexing="ij"), axis=-1).reshape(-1, 2)
    return np.ascontiguousarray(grid if architecture.rope_grid_indexing == "ij" else grid[:, ::-1], np.float32)


def angles(architecture: Architecture) -> Floats:
    """The angle of each patch and pair of channels, ``(grid^2, d/2)``: those of the first axis before the second's."""
    pairs = architecture.head_dim // 4
    exponents = np.arange(pairs, dtype=np.float32) / np.float32(pairs)
    periods = np.power(np.float32(architecture.rope_temperature), exponents)
    places = coordinates(architecture)[:, :, None]
    if architecture.rope_grid == "centered":
        found = np.float32(2 * math.pi) * places / periods
    else:
        found = places * (1 / periods)
    return np.asarray(found, np.float32).reshape(len(places), 2 * pairs)


def mixed_frequencies(random: np.random.Generator, shape: tuple[int, ...], temperature: float) -> Floats:
    """What trained frequencies begin as, ``(2, depth, heads, d/2)``: those of the axes, turned as a whole.

    A patch at (x, y) turns pair i by x f[0, i] + y f[1, i]. With a = 2 pi u, u ~ U(0, 1) for each block and head, and
    w_i = temperature^(-i / (d/4)), the first d/4 pairs have f = w (cos a, sin a), the others w (-sin a, cos a).
    Heo et al. 2024 (arXiv 2403.13298), section 3.2; as timm draws them.
    """
    _, depth, heads, half = shape
    magnitudes = temperature ** (-np.arange(half // 2) / (half // 2))
    turn = 2 * math.pi * random.uniform(size=(depth, heads, 1)) + np.repeat([0, math.pi / 2], half // 2)
    return np.stack([f(turn) * np.tile(magnitudes, 2) for f in (np.cos, np.sin)]).astype(np.float32)

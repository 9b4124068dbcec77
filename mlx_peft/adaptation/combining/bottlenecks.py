"""Bottlenecks beside one MLP, side by side: what they add to its output is the sum of what each adds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mlx_peft.adaptation.combining.part import Part
from mlx_peft.config.methods import AdaptFormer
from mlx_peft.core.border import Tensors
from mlx_peft.vit.architecture import Architecture


def combine(parts: Sequence[Part], architecture: Architecture) -> tuple[AdaptFormer, Tensors]:
    """One bottleneck as wide as all together, exactly: down_1, down_2, ... one above the other; up_i, times w_i s_i,
    side by side; and the biases of up, likewise weighted, added. Where a part has none, zeros.
    """
    methods = [_adaptformer(part) for part in parts]
    blocks = sorted({block for method in methods for block in method.chosen_blocks(architecture)})
    method = AdaptFormer(
        bottleneck=sum(method.bottleneck for method in methods),
        scale=1.0,
        blocks=None if blocks == list(range(architecture.depth)) else tuple(blocks),
    )
    found = {name: np.zeros(shape, np.float32) for name, shape in method.added(architecture).items()}
    first = 0
    for part, own in zip(parts, methods, strict=True):
        rows, weight = slice(first, first + own.bottleneck), np.float32(part.weight * own.scale)
        for block in (f"blocks.{number}" for number in own.chosen_blocks(architecture)):
            down, up = f"{block}.adapter_down", f"{block}.adapter_up"
            found[f"{down}.weight"][rows] = part.tensors[f"{down}.weight"]
            found[f"{down}.bias"][rows] = part.tensors[f"{down}.bias"]
            found[f"{up}.weight"][:, rows] = part.tensors[f"{up}.weight"] * weight
            found[f"{up}.bias"] += part.tensors[f"{up}.bias"] * weight
        first = rows.stop
    return method, found


def _adaptformer(part: Part) -> AdaptFormer:
    assert isinstance(part.method, AdaptFormer), part.method
    return part.method

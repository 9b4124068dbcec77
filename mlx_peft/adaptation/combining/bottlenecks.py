"""Bottlenecks at one place, side by side: what they add there is the sum of what each adds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from mlx_peft.adaptation.combining.differences import Base
from mlx_peft.adaptation.combining.part import Part
from mlx_peft.adaptation.combining.rules import Array
from mlx_peft.adaptation.factors import ungrouped
from mlx_peft.config.methods import AdapterPlus, AdaptFormer, Convpass, Houlsby, Method, RepAdapter
from mlx_peft.config.methods.bottleneck import Bottlenecked
from mlx_peft.core.border import Tensors
from mlx_peft.vit.architecture import Architecture


def combine(parts: Sequence[Part], architecture: Architecture, base: Base) -> tuple[Method, Tensors]:
    """One bottleneck as wide as all together, exactly: down_1, down_2, ... one above the other; up_i, times w_i s_i,
    side by side, without groups; and the biases of up, likewise weighted, added. Where a part has none, zeros. Norms
    that are trained beside them are the base's and the weighted sum of what each has changed.
    """
    methods = [_bottlenecked(part) for part in parts]
    blocks = sorted({block for method in methods for block in method.chosen_blocks(architecture)})
    method = WIDER[type(methods[0])](
        methods, sum(method.bottleneck for method in methods),
        None if blocks == list(range(architecture.depth)) else tuple(blocks),
    )  # fmt: skip
    found = {name: np.zeros(shape, np.float32) for name, shape in method.added(architecture).items()}
    found |= {name: np.ones_like(tensor) for name, tensor in found.items() if name.endswith(".adapter_scale")}
    first = 0
    for part, own in zip(parts, methods, strict=True):
        rows = slice(first, first + own.bottleneck)
        for path in own.paths(architecture):
            _beside(found, part, path, rows)
        first = rows.stop
    return method, found | _norms(method, parts, architecture, base)


def _beside(found: Tensors, part: Part, path: str, rows: slice) -> None:
    """Puts a part's bottleneck in its rows of the wide one's hidden layer."""
    tensors, name, scale = part.tensors, f"{path}.adapter", np.float32(part.weight) * _scale(part, path)
    up = tensors[f"{name}_up.weight"]
    up = ungrouped(up, part.method.groups) if isinstance(part.method, RepAdapter) else up
    found[f"{name}_down.weight"][rows] = tensors[f"{name}_down.weight"]
    found[f"{name}_down.bias"][rows] = tensors[f"{name}_down.bias"]
    found[f"{name}_up.weight"][:, rows] = up * scale[..., None]
    if isinstance(part.method, Convpass):
        found[f"{name}_conv.weight"][rows, rows] = tensors[f"{name}_conv.weight"]
        found[f"{name}_conv.bias"][rows] = tensors[f"{name}_conv.bias"]
    found[f"{name}_up.bias"] += tensors[f"{name}_up.bias"] * scale


def _scale(part: Part, path: str) -> Array:
    """s of a part's bottleneck: a number, or one for each channel."""
    method = part.method
    number = method.scale if isinstance(method, AdaptFormer | Convpass | RepAdapter) else 1.0
    return np.asarray(part.tensors.get(f"{path}.adapter_scale", number), np.float32)


def _norms(method: Method, parts: Sequence[Part], architecture: Architecture, base: Base) -> Tensors:
    found: Tensors = {}
    for name in method.selected(architecture):
        before = base()[name]
        changes = [part.weight * (part.tensors[name] - before) for part in parts if name in part.tensors]
        found[name] = (before + sum(changes)).astype(np.float32)
    return found


def _bottlenecked(part: Part) -> Bottlenecked:
    assert isinstance(part.method, Bottlenecked), part.method
    return part.method


Blocks = tuple[int, ...] | None

WIDER: Mapping[type[Bottlenecked], Callable[[Sequence[Any], int, Blocks], Method]] = {
    AdaptFormer: lambda methods, width, blocks: AdaptFormer(bottleneck=width, blocks=blocks, scale=1.0),
    AdapterPlus: lambda methods, width, blocks: AdapterPlus(bottleneck=width, blocks=blocks),
    Houlsby: lambda methods, width, blocks: Houlsby(
        bottleneck=width, blocks=blocks, norms=any(method.norms for method in methods)
    ),
    Convpass: lambda methods, width, blocks: Convpass(bottleneck=width, blocks=blocks, scale=1.0),
    RepAdapter: lambda methods, width, blocks: RepAdapter(bottleneck=width, blocks=blocks, groups=1, scale=1.0),
}
"""The method of one bottleneck that is as wide as all together, from theirs, in some blocks."""

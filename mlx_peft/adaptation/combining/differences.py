"""Adapters whose tensors stand in the place of others: what each has changed is combined, and added to what was there.

What was there is 1 or 0 for factors and shifts, and the base's own numbers where a method trains those. Weights and
biases after merging are linear in these tensors, so that the weighted sum of such changes is that of the updates.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from mlx_peft.adaptation.combining.part import Part, numbered
from mlx_peft.adaptation.combining.rules import Array, combined
from mlx_peft.config.combination import Combination
from mlx_peft.config.methods import IA3, SSF, BitFit, Full, LayerNorm, Method, MethodConfig
from mlx_peft.config.methods.base import Blockwise
from mlx_peft.core.border import Tensors
from mlx_peft.core.errors import UserError
from mlx_peft.vit.architecture import Architecture
from mlx_peft.vit.parameters import last
from mlx_peft.vit.sites import LAYERS

Base = Callable[[], Tensors]
"""The base's tensors, read when they are first asked for."""


def combine(
    parts: Sequence[Part], combination: Combination, architecture: Architecture, base: Base
) -> tuple[Method, Tensors]:
    """One adapter of the parts' method, of all that any of them has changed.

    Raises:
        UserError: one scales a layer's inputs, and another the outputs.
    """
    methods = [part.method for part in parts]
    method = SPANNING[type(methods[0])](methods, architecture)
    own = [_whole(part.method, architecture, part.tensors) for part in parts]
    found: Tensors = {}
    for name, shape in {**dict.fromkeys(method.selected(architecture)), **method.added(architecture)}.items():
        before = NEUTRAL[last(name)](shape) if shape is not None else base()[name]
        having = [i for i, tensors in enumerate(own) if name in tensors]
        changes = [own[i][name] - before for i in having]
        weights = [parts[i].weight for i in having]
        changed = combined(changes, weights, combination, numbered(combination.seed, having, name)) if having else 0
        found[name] = (before + changed).astype(np.float32)
    return method, found


def _ones(shape: tuple[int, ...]) -> Array:
    return np.ones(shape, np.float32)


def _zeros(shape: tuple[int, ...]) -> Array:
    return np.zeros(shape, np.float32)


NEUTRAL = {"ia3_l": _ones, "ssf_scale": _ones, "ssf_shift": _zeros}
"""What changes nothing, by the last name of a tensor that a method adds."""


def _whole(method: MethodConfig, architecture: Architecture, tensors: Tensors) -> Tensors:
    """The tensors, those of parts of a fused qkv as ones of the whole."""
    if not isinstance(method, IA3):
        return tensors
    found = dict(tensors)
    for site in method.sites(architecture):
        if site.parts:
            own = found[f"{site.path}.ia3_l"]
            found[f"{site.path}.ia3_l"] = _ones((site.outputs,))
            for rows, values in zip(site.rows, np.split(own, site.count), strict=True):
                found[f"{site.path}.ia3_l"][rows] = values
    return found


def _blockwise(methods: Sequence[SSF | BitFit | LayerNorm | Full], architecture: Architecture) -> Method:
    """All that any has: in all blocks, and outside of them, where one is not restricted to some."""
    return type(methods[0])(blocks=_blocks(methods, architecture))


def _ia3(methods: Sequence[IA3], architecture: Architecture) -> IA3:
    sides: dict[str, bool] = {}
    for method in methods:
        for target in {LAYERS[site.name] for site in method.sites(architecture)}:
            if sides.setdefault(target, target in method.inputs) != (target in method.inputs):
                raise UserError(f"(IA)^3 scales {target} on its inputs in one adapter, and on its outputs in another")
    targets = tuple(target for target in dict.fromkeys(LAYERS.values()) if target in sides)
    return IA3(
        targets=targets,
        feedforward=tuple(target for target in targets if sides[target]),
        blocks=_blocks(methods, architecture),
    )


def _blocks(methods: Sequence[Blockwise], architecture: Architecture) -> tuple[int, ...] | None:
    if any(method.blocks is None for method in methods):
        return None
    return tuple(sorted({block for method in methods for block in method.chosen_blocks(architecture)}))


SPANNING: Mapping[type[MethodConfig], Callable[[Any, Architecture], Method]] = {
    IA3: _ia3,
    SSF: _blockwise,
    BitFit: _blockwise,
    LayerNorm: _blockwise,
    Full: _blockwise,
}
"""The smallest method of a kind that has all that several have."""

"""The terms of methods that train vectors: factors, shifts, biases and norms."""

from __future__ import annotations

import numpy as np

from mlx_peft.adaptation.terms.term import Layers, Plain, Terms
from mlx_peft.config.methods import IA3, SSF, Linear, MethodConfig
from mlx_peft.core.border import Tensors
from mlx_peft.vit.architecture import Architecture
from mlx_peft.vit.sites import LAYERS, PARTS

APART = {f"{part}_bias": place for place, part in enumerate(PARTS)}
"""The biases that may stand beside a qkv that has none, and which third of its outputs each is of."""


def linear(method: Linear, architecture: Architecture, tensors: Tensors, base: Plain) -> Terms:
    return Terms({})


def selective(method: MethodConfig, architecture: Architecture, tensors: Tensors, base: Plain) -> Terms:
    """The biases, and the norms' weights and biases, that a method trains, less those of the base.

    q_bias and v_bias, which stand beside qkv, are shifts of it.
    """
    found: Layers = {}
    for name in method.selected(architecture):
        plain, (path, _, kind) = base.vector(name), name.rpartition(".")
        assert plain is not None, name  # it is a parameter of the architecture
        change = tensors[name] - plain
        if kind in APART:
            shift = found.setdefault(f"{path}.qkv", {}).setdefault(
                "shift", np.zeros(len(PARTS) * len(change), np.float32)
            )
            shift.reshape(len(PARTS), -1)[APART[kind]] = change
        else:
            found.setdefault(path, {})[{"bias": "shift", "weight": "weight"}[kind]] = change
    return Terms(found)


def ia3(method: IA3, architecture: Architecture, tensors: Tensors, base: Plain) -> Terms:
    found: Layers = {}
    for site in method.sites(architecture):
        own = tensors[f"{site.path}.ia3_l"]
        if LAYERS[site.name] in method.inputs:
            found[site.path] = {"into": own}
        else:
            gain = np.ones(site.outputs, np.float32)
            for rows, values in zip(site.rows, np.split(own, site.count), strict=True):
                gain[rows] = values
            found[site.path] = {"gain": gain}
    return Terms(found)


def ssf(method: SSF, architecture: Architecture, tensors: Tensors, base: Plain) -> Terms:
    return Terms(
        {
            path: {"gain": tensors[f"{path}.ssf_scale"], "shift": tensors[f"{path}.ssf_shift"]}
            for path in method.layers(architecture)
        }
    )

"""Layers found and exchanged by their paths."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import mlx.nn as nn

from mlx_peft.backend.methods.adapted import Adapted
from mlx_peft.backend.models.vit import VisionTransformer
from mlx_peft.backend.quant.affine import QuantizedLinear
from mlx_peft.core.errors import UserError
from mlx_peft.vit.sites import Site


def find(model: VisionTransformer, path: str) -> nn.Module:
    """The module at a path such as ``blocks.3.attn.qkv``."""
    module: object = model
    for name in path.split("."):
        module = module[int(name)] if isinstance(module, list) else module[name]  # type: ignore[index]
    return module  # type: ignore[return-value]


def replace(model: VisionTransformer, path: str, layer: nn.Module) -> None:
    """Puts ``layer`` in the place of the one at ``path``."""
    above, _, last = path.rpartition(".")
    parent = find(model, above) if above else model
    if isinstance(parent, list):
        parent[int(last)] = layer
    else:
        parent[last] = layer


def wrap(model: VisionTransformer, sites: Iterable[Site], wrapper: Callable[[Site, nn.Module], nn.Module]) -> None:
    """Replaces the layer of each site by ``wrapper(site, layer)``."""
    for site in sites:
        replace(model, site.path, wrapper(site, find(model, site.path)))


def unwrap(model: VisionTransformer, keeps_codes: bool) -> dict[str, nn.Module]:
    """Replaces every layer that a method put into the model by its merged one. Returns what was replaced, by path.

    Raises UserError, and changes nothing, where a layer's base is quantised, unless ``keeps_codes`` says that what is
    merged has codes.
    """
    replaced = {path: layer for path, layer in model.named_modules() if isinstance(layer, Adapted)}
    for path, layer in replaced.items():
        if not keeps_codes:
            must_be_plain(path, layer.base_layer)
    merged = {path: layer.merged() for path, layer in replaced.items()}  # all of them, before one is put in place
    for path, layer in merged.items():
        replace(model, path, layer)
    return replaced


def must_be_plain(path: str, layer: nn.Module) -> None:
    """Raises UserError where a layer that an update would be merged into has codes."""
    if isinstance(layer, QuantizedLinear):
        raise UserError(
            f"{path} is quantised, and what its {layer.bits}-bit codes and the update add up to has no such codes: "
            "either merge into dequantised weights (dequantize), which is exact, or quantise the merged ones again "
            "(requantize), which is not"
        )


def train(model: VisionTransformer, name: str) -> None:
    """Trains the parameter of a name."""
    path, _, last = name.rpartition(".")
    module = find(model, path) if path else model
    module.unfreeze(recurse=False, keys=[last])

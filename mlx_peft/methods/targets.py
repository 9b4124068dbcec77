"""Which layers a method adapts: linear layers inside the blocks, by their last name."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import mlx.nn as nn

from mlx_peft.config.errors import UserError
from mlx_peft.models.vit import VisionTransformer

ALIASES = {"fc1": ("fc1", "fc1_g", "fc1_x")}
"""SwiGLU has its first layer in two; a target names both."""


def layers(model: VisionTransformer, target: str) -> Iterator[tuple[str, nn.Module]]:
    """Path and layer of each one in the blocks that ``target`` names. Raises UserError where there is none."""
    names = ALIASES.get(target, (target,))
    found = False
    for index, block in enumerate(model.blocks):
        for path, layer in block.named_modules():
            if path.rpartition(".")[2] in names:
                found = True
                yield f"blocks.{index}.{path}", layer
    if not found:
        raise UserError(f"method.targets: {target!r} matches no layer of the model's blocks")


def replace(model: VisionTransformer, path: str, layer: nn.Module) -> None:
    """Puts ``layer`` in the place of the one at ``path``."""
    parent: object = model
    *above, last = path.split(".")
    for name in above:
        parent = parent[int(name)] if isinstance(parent, list) else parent[name]  # type: ignore[index]
    parent[last] = layer  # type: ignore[index]


def wrap(model: VisionTransformer, target: str, wrapper: Callable[[str, nn.Module], nn.Module]) -> None:
    """Replaces each layer that ``target`` names by ``wrapper(path, layer)``."""
    for path, layer in list(layers(model, target)):
        replace(model, path, wrapper(path, layer))


def unwrap(model: VisionTransformer, kind: type, merged: Callable[[nn.Module], nn.Module]) -> dict[str, nn.Module]:
    """Replaces each layer of the type ``kind`` by ``merged(layer)``. Returns what was replaced, by path."""
    replaced = {path: layer for path, layer in model.named_modules() if isinstance(layer, kind)}
    for path, layer in replaced.items():
        replace(model, path, merged(layer))
    return replaced

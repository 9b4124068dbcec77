"""The terms of methods that put something into whole blocks: bottlenecks and prompts."""

from __future__ import annotations

from mlx_peft.adaptation.terms import vectors
from mlx_peft.adaptation.terms.term import Array, Entering, Layers, Plain, Terms, held
from mlx_peft.config.methods import VPT, AdapterPlus, AdaptFormer, Houlsby
from mlx_peft.core.border import Tensors
from mlx_peft.vit.architecture import Architecture


def adaptformer(method: AdaptFormer, architecture: Architecture, tensors: Tensors, base: Plain) -> Terms:
    return Terms({path: _bottleneck(tensors, path, method.scale) for path in method.paths(architecture)})


def adapter_plus(method: AdapterPlus, architecture: Architecture, tensors: Tensors, base: Plain) -> Terms:
    found: Layers = {}
    for path in method.paths(architecture):
        own = _bottleneck(tensors, path, tensors[f"{path}.adapter_scale"])
        found[path] = {f"after_{name}": array for name, array in own.items()}
    return Terms(found)


def houlsby(method: Houlsby, architecture: Architecture, tensors: Tensors, base: Plain) -> Terms:
    norms = vectors.selective(method, architecture, tensors, base)
    return Terms(norms.layers | {path: _bottleneck(tensors, path) for path in method.paths(architecture)})


def _bottleneck(tensors: Tensors, path: str, scale: float | Array = 1.0) -> dict[str, Array]:
    """down and up of the bottleneck at a path, with their biases; the scale, of each channel, goes into up."""
    down, up = (held(tensors[f"{path}.adapter_{name}.weight"].T) for name in ("down", "up"))
    return {
        "down": down,
        "down_bias": tensors[f"{path}.adapter_down.bias"],
        "up": scale * up,
        "up_bias": scale * tensors[f"{path}.adapter_up.bias"],
    }


def vpt(method: VPT, architecture: Architecture, tensors: Tensors, base: Plain) -> Terms:
    blocks = [f"blocks.{number}" for number in method.chosen_blocks(architecture)]
    entered = blocks if method.deep else blocks[:1]
    left = blocks if method.deep else blocks[-1:]
    return Terms(
        {block: {"prompts": tensors[f"{block}.prompts"][0]} for block in entered},
        tuple(
            Entering(block, method.tokens if block in entered else 0, block in left)
            for block in blocks
            if block in entered or block in left
        ),
    )

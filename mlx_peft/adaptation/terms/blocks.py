"""The terms of methods that put something into whole blocks: bottlenecks and prompts."""

from __future__ import annotations

from mlx_peft.adaptation.terms.term import Entering, Layers, Plain, Terms, held
from mlx_peft.config.methods import VPT, AdaptFormer
from mlx_peft.core.border import Tensors
from mlx_peft.vit.architecture import Architecture


def adaptformer(method: AdaptFormer, architecture: Architecture, tensors: Tensors, base: Plain) -> Terms:
    found: Layers = {}
    for block in (f"blocks.{number}" for number in method.chosen_blocks(architecture)):
        down, up = (held(tensors[f"{block}.adapter_{name}.weight"].T) for name in ("down", "up"))
        found[block] = {
            "down": down,
            "down_bias": tensors[f"{block}.adapter_down.bias"],
            "up": method.scale * up,
            "up_bias": method.scale * tensors[f"{block}.adapter_up.bias"],
        }
    return Terms(found)


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

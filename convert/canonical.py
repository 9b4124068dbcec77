"""A checkpoint of timm's under timm's present names: what older versions, and other trainings, called otherwise."""

from __future__ import annotations

import re
from math import isqrt

import numpy as np

from convert.files import renamed
from convert.layouts.dinov3 import from_dinov3
from convert.layouts.eva import from_eva
from convert.layouts.pretraining import without_pretraining
from mlx_peft.core.border import Tensors
from mlx_peft.vit.parameters import is_head

PATCHES = "patch_embed.proj.weight"
REPRESENTATION = "pre_logits."


def canonical(tensors: Tensors, family: str) -> tuple[Tensors, tuple[str, ...]]:
    """A checkpoint under timm's present names, as its ``checkpoint_filter_fn`` has them.

    DeiT-3's layer scales, which are called as Eva's still are, DINOv2's and DINOv3's own names, patch embeddings kept
    as linear layers. The representation layer of old weights is left out, and with it the head that was trained behind
    it, which timm keeps; and so is what only self-supervised training needs.

    Args:
        tensors: by name, as they were found.
        family: of the architecture that they are for.

    Returns:
        The tensors, and what was left out, in words.
    """
    tensors, notes = from_eva(tensors) if family == "eva" else _without_representation(tensors)
    tensors, more = without_pretraining(tensors)
    tensors, most = from_dinov3(tensors)
    tensors, notes = _from_dinov2(tensors), (*notes, *more, *most)
    result = {}
    for name, tensor in tensors.items():
        if name == PATCHES and tensor.ndim == 2:
            side = isqrt(tensor.shape[1] // 3)
            if 0 < 3 * side**2 == tensor.shape[1]:
                tensor = tensor.reshape(-1, 3, side, side)
        result[name] = tensor
    scale = {"vit": r"\1.ls\2.gamma", "eva": r"\1.gamma_\2", "beit": r"\1.gamma_\2"}[family]
    return renamed(result, lambda name: re.sub(r"^(blocks\.\d+)\.gamma_([12])$", scale, name)), notes


def _without_representation(tensors: Tensors) -> tuple[Tensors, tuple[str, ...]]:
    """``head(tanh(pre_logits(x)))`` is no linear head of ``x``: neither half means anything without the other."""
    if not any(name.startswith(REPRESENTATION) for name in tensors):
        return tensors, ()
    kept = {name: t for name, t in tensors.items() if not (name.startswith(REPRESENTATION) or is_head(name))}
    return kept, ("pre_logits: the hidden layer before the head, and the head behind it, are left out",)


def _from_dinov2(tensors: Tensors) -> Tensors:
    """With registers, DINOv2 adds a position to the class token and none to the registers: timm adds it beforehand."""
    positions, token = (tensors.get(name, np.empty(0)) for name in ("pos_embed", "cls_token"))
    if "register_tokens" in tensors and positions.ndim == 3 and token.shape == (1, 1, positions.shape[2]):
        tensors = renamed(tensors, lambda name: "reg_token" if name == "register_tokens" else name)
        tensors["cls_token"] = tensors["cls_token"] + positions[:, :1]
        tensors["pos_embed"] = positions[:, 1:]
    layers = {"w12": "fc1", "w3": "fc2"}
    return renamed(tensors, lambda name: re.sub(r"\.mlp\.(w12|w3)\.", lambda m: f".mlp.{layers[m[1]]}.", name))

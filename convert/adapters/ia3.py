"""(IA)^3 as Hugging Face PEFT keeps it: an ``ia3_l`` a layer, ``(out, 1)``, or ``(1, in)`` on the feed-forward side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from convert.adapters.block_layers import by_kind, by_layer, must_ask_no_more
from convert.adapters.parts import adapted, gathered, note, others, parts_of, spread
from convert.adapters.separate import fused, is_separate, rows, shared, stacked, together
from convert.adapters.targeting import target_modules, target_of, where
from mlx_peft.config.methods import IA3
from mlx_peft.core.border import Tensors
from mlx_peft.core.errors import UserError
from mlx_peft.vit.parameters import is_head
from mlx_peft.vit.sites import PARTS


def pack(method: IA3, tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    """Configuration and tensors for PEFT: parts of a fused qkv become factors of the whole, ones for the others."""
    layers = [name.rpartition(".")[0] for name in tensors if not is_head(name)]
    inner = [layer for layer in layers if _feedforward(method, layer)]
    config = {
        "target_modules": target_modules(layers, every_block=method.blocks is None),
        "feedforward_modules": target_modules(inner, every_block=method.blocks is None) if inner else [],
        "fan_in_fan_out": False,
        "init_ia3_weights": True,
    }
    packed = {}
    for name, tensor in tensors.items():
        layer = name.rpartition(".")[0]
        if is_head(name):
            packed[name] = tensor
        elif _feedforward(method, layer):
            packed[name] = tensor[None]
        else:
            parts = parts_of(method.targets, layer)
            packed[name] = (spread(tensor, parts, 1) if parts else tensor)[:, None]
    return config, packed


def unpack(method: IA3, packed: Tensors) -> Tensors:
    """What ``pack`` was given, bit for bit. Raises ValueError where the tensors are not of this method."""
    tensors, layers = by_kind(packed, {"ia3_l"}, "(IA)^3")
    for layer, held in layers.items():
        name, tensor = f"{layer}.ia3_l", held["ia3_l"]
        if tensor.ndim != 2 or tensor.shape[0 if _feedforward(method, layer) else 1] != 1:
            expected = "(1, in)" if _feedforward(method, layer) else "(out, 1)"
            raise ValueError(f"{name} should have the shape {expected}, not {tensor.shape}")
        parts = parts_of(method.targets, layer)
        tensors[name] = gathered(tensor.ravel(), parts, 1) if parts else tensor.ravel()
    return tensors


def notes(method: IA3, tensors: Tensors) -> list[str]:
    """What PEFT does not see in the file, and would do otherwise were it to train the adapter further."""
    if not others(adapted(method.targets)):
        return []
    return note(method.targets, tensors, ", with factors of 1 elsewhere", "those move too")


def from_peft(config: dict[str, Any], packed: Tensors, path: Path) -> tuple[IA3, Tensors]:
    """An adapter that PEFT itself wrote for a timm ViT.

    Which side a layer is scaled on is what its factors' shape says. A part of qkv that has only ones, in every block,
    is taken for one that is not adapted, unless they all have.

    Raises:
        UserError: for what is more than (IA)^3 on the linear layers of the blocks.
    """
    must_ask_no_more(config, {"feedforward_modules", "init_ia3_weights"}, path)
    layers = {layer: tensors["ia3_l"] for layer, tensors in by_layer(packed, {"ia3_l"}, "(IA)^3", path).items()}
    layers = _with_one_input(layers)
    sides: dict[str, bool] = {}
    for layer, tensor in layers.items():
        if tensor.ndim != 2 or 1 not in tensor.shape:
            raise UserError(f"{path}: {layer}.ia3_l should be (out, 1) or (1, in), but is {tensor.shape}")
        target, inner = target_of(layer), tensor.shape[0] == 1
        if sides.setdefault(target, inner) != inner:
            raise UserError(f"{path}: {target} is scaled on its input in some places and on its output in others")
    targets, blocks = where(config, layers, path)
    qkv = {layer: tensor for layer, tensor in layers.items() if layer.endswith(".qkv")}
    parts = () if sides.get("qkv", True) else _adapted(qkv, path)
    if parts:
        targets = (*parts, *(target for target in targets if target != "qkv"))
    feedforward = tuple(target for target in targets if sides.get(target, False))
    method = IA3.model_validate({"targets": targets, "feedforward": feedforward, "blocks": blocks})
    tensors = {name: tensor for name, tensor in packed.items() if is_head(name)}
    for layer, own in together({name: (name, tensor) for name, tensor in layers.items()}).items():
        if is_separate(own[0][0]):
            tensors[f"{layer}.ia3_l"] = stacked([tensor for _, tensor in own], f"{layer}.ia3_l").ravel()
        else:
            whole = own[0][1].ravel()
            tensors[f"{layer}.ia3_l"] = gathered(whole, parts, 1) if layer in qkv and parts else whole
    return method, tensors


def _with_one_input(layers: Tensors) -> Tensors:
    """q, k and v on layers of their own that scale their input alike, as the qkv that has this input."""
    found: Tensors = {}
    for layer, own in together({name: (name, tensor) for name, tensor in layers.items()}).items():
        first = own[0][1]
        alike = all(tensor.shape[:1] == (1,) and np.array_equal(tensor, first) for _, tensor in own)
        found |= {layer: first} if len(own) == len(PARTS) and alike else dict(own)
    return found


def apart(method: IA3, tensors: Tensors) -> Tensors:
    """The tensors with q, k and v on layers of their own, each with the factors of its rows, or all of the inputs'."""
    found = {}
    for name, tensor in tensors.items():
        layer = name.rpartition(".")[0]
        if is_head(name):
            found[name] = tensor
        else:
            parts = parts_of(method.targets, layer)
            split = shared if _feedforward(method, layer) else rows
            found |= {f"{own}.ia3_l": share for own, share in split(tensor, layer, parts).items()}
    return found


def _feedforward(method: IA3, layer: str) -> bool:
    return target_of(fused(layer)) in method.inputs


def _adapted(layers: Tensors, path: Path) -> tuple[str, ...]:
    """The parts of qkv that have a factor other than 1 in some block; empty where that is all of them, or none."""
    for layer, tensor in layers.items():
        if tensor.size % len(PARTS):
            raise UserError(f"{path}: {layer}.ia3_l should have a number for each row of q, k and v, not {tensor.size}")
    changed = np.array([(tensor.reshape(len(PARTS), -1) != 1).any(axis=1) for tensor in layers.values()]).any(axis=0)
    return () if changed.all() or not changed.any() else tuple(np.array(PARTS)[changed].tolist())

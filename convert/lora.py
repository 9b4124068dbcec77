"""LoRA as Hugging Face PEFT keeps it: one A and one B a layer, under the layer's name."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from convert.files import listed
from mlx_peft.config.border import Tensors
from mlx_peft.config.errors import UserError
from mlx_peft.config.methods import LoRA
from mlx_peft.config.parameters import is_head

PARTS = ("q", "k", "v")

LAYER = re.compile(r"(blocks\.\d+\.(?:attn\.(?:qkv|proj)|mlp\.(?:fc1|fc1_g|fc1_x|fc2)))\.(lora_[AB])\.weight")
TARGETS = {"qkv": "qkv", "proj": "proj", "fc1": "fc1", "fc1_g": "fc1", "fc1_x": "fc1", "fc2": "fc2"}
"""The layers that can be adapted, by their last name, and the target that stands for each."""

READ = {"r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "lora_dropout", "peft_type"}
NO_MATTER = {
    "auto_mapping",
    "base_model_name_or_path",
    "eva_config",
    "exclude_modules",
    "fan_in_fan_out",
    "inference_mode",
    "layers_pattern",
    "layers_to_transform",
    "megatron_core",
    "modules_to_save",
    "peft_version",
    "qalora_group_size",
    "revision",
    "target_modules",
    "task_type",
}
"""Keys of PEFT's that leave the forward pass alone, or say what the tensors' names say too."""

PLAIN_START = ("gaussian", "orthogonal", "eva")
"""PEFT's other named initialisations change the base, and the adapter alone is not the whole model."""


def pack(method: LoRA, tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    """Configuration and tensors for PEFT.

    The parts of a fused qkv become one adapter of rank (parts * r): A holds the parts' A one above the other already, B
    gets each part's block in its rows and columns, and alpha grows with the rank so that the scaling stays.
    """
    ranks = {target: method.rank * max(len(parts), 1) for target, parts in method.layers.items()}
    smallest = min(ranks.values())
    larger = {target: rank for target, rank in ranks.items() if rank != smallest}
    layers = {name.rpartition(".")[0] for name in tensors if not is_head(name)}
    config = {
        "r": smallest,
        "lora_alpha": _alpha(method, smallest),
        "rank_pattern": larger,
        "alpha_pattern": {target: _alpha(method, rank) for target, rank in larger.items()},
        "lora_dropout": method.dropout,
        "use_rslora": method.rslora,
        "use_dora": False,
        "bias": "none",
        "fan_in_fan_out": False,
        "target_modules": rf".*blocks\.\d+\..*\.({'|'.join(sorted({layer.rpartition('.')[2] for layer in layers}))})",
    }
    packed = {}
    for name, tensor in tensors.items():
        layer, _, kind = name.rpartition(".")
        if kind == "lora_B" and (parts := method.layers[TARGETS[layer.rpartition(".")[2]]]):
            tensor = _placed(tensor, parts)
        packed[name if is_head(name) else f"{name}.weight"] = tensor
    return config, packed


def unpack(method: LoRA, packed: Tensors) -> Tensors:
    """What ``pack`` was given, bit for bit. Raises ValueError where the tensors are not of this method."""
    tensors = {}
    for name, tensor in packed.items():
        if is_head(name):
            tensors[name] = tensor
            continue
        match = LAYER.fullmatch(name)
        if match is None:
            raise ValueError(f"an unknown tensor {name}")
        layer, kind = match.groups()
        if kind == "lora_B" and (parts := method.layers.get(TARGETS[layer.rpartition(".")[2]])):
            tensor = _taken(tensor, parts, method.rank)
        tensors[f"{layer}.{kind}"] = tensor
    return tensors


def from_peft(config: dict[str, Any], packed: Tensors, path: Path) -> tuple[LoRA, Tensors]:
    """An adapter that PEFT itself wrote for a timm ViT.

    Where layers differ in rank or scaling, the smaller ones are filled up with zeros and their scaling goes into B: the
    model stays as it was.

    Raises:
        UserError: for what is more than LoRA on the linear layers of the blocks.
    """
    _must_be_plain(config, path)
    layers = _layers(packed, path)
    ranks = {layer: len(A) for layer, (A, _) in layers.items()}
    names = {TARGETS[layer.rpartition(".")[2]] for layer in layers}
    largest = max(layers, key=lambda layer: ranks[layer])
    try:
        pattern = dict(config.get("alpha_pattern") or {})
        alphas = {layer: _of_pattern(pattern, layer, config["lora_alpha"]) for layer in layers}
        method = LoRA.model_validate({
            "rank": ranks[largest],
            "alpha": alphas[largest],
            "dropout": config.get("lora_dropout", 0),
            "rslora": config.get("use_rslora", False),
            "targets": tuple(target for target in dict.fromkeys(TARGETS.values()) if target in names),
        })  # fmt: skip
        scalings = {
            layer: method.model_copy(update={"rank": ranks[layer], "alpha": float(alphas[layer])}).scaling
            for layer in layers
        }
    except (KeyError, TypeError, ValueError, ArithmeticError, re.error) as error:
        raise UserError(f"{path}: its LoRA configuration is not understood: {error}") from error

    tensors = {name: tensor for name, tensor in packed.items() if is_head(name)}
    for layer, (A, B) in layers.items():
        missing = method.rank - ranks[layer]
        tensors[f"{layer}.lora_A"] = np.pad(A, ((0, missing), (0, 0)))
        tensors[f"{layer}.lora_B"] = np.pad(B * np.float32(scalings[layer] / method.scaling), ((0, 0), (0, missing)))
    return method, tensors


def _must_be_plain(config: dict[str, Any], path: Path) -> None:
    odd = {key: value for key, value in config.items() if value and key not in READ | NO_MATTER}
    if odd.get("bias") == "none":
        del odd["bias"]
    if odd.get("init_lora_weights") in (True, *PLAIN_START):
        del odd["init_lora_weights"]
    if odd:
        raise UserError(f"{path}: not supported: {listed(f'{key}: {value}' for key, value in odd.items())}")


def _layers(packed: Tensors, path: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """A and B by layer. Raises UserError where there is anything else, heads apart, or they do not match."""
    found: dict[str, dict[str, np.ndarray]] = {}
    unknown = []
    for name, tensor in packed.items():
        if match := LAYER.fullmatch(name):
            found.setdefault(match[1], {})[match[2]] = tensor
        elif not is_head(name):
            unknown.append(name)
    if unknown:
        raise UserError(f"{path}: tensors that are no LoRA of a linear layer in a block: {listed(sorted(unknown))}")
    if not found:
        raise UserError(f"{path}: no LoRA tensors in it")
    layers = {}
    for layer, pair in found.items():
        A, B = pair.get("lora_A"), pair.get("lora_B")
        if A is None or B is None or A.ndim != 2 or B.ndim != 2 or len(A) != B.shape[1]:
            shapes = ", ".join(f"{kind} {tensor.shape}" for kind, tensor in pair.items())
            raise UserError(f"{path}: {layer} needs a lora_A (r, in) and a lora_B (out, r), but has {shapes}")
        layers[layer] = (A, B)
    return layers


def _of_pattern(pattern: dict[str, Any], layer: str, default: Any) -> Any:
    """PEFT's ``alpha_pattern``: the first key, a regular expression for the end of a layer's name, that fits it."""
    return next((value for key, value in pattern.items() if re.match(rf"(.*\.)?({key})$", layer)), default)


def _alpha(method: LoRA, rank: int) -> float:
    """The alpha that gives a rank the method's scaling; whole numbers as PEFT writes them."""
    ratio = rank / method.rank
    alpha = method.alpha * (ratio**0.5 if method.rslora else ratio)
    return int(alpha) if alpha == int(alpha) else alpha


def _placed(B: np.ndarray, parts: tuple[str, ...]) -> np.ndarray:
    """The parts' B ``(parts * d, r)`` as ``(3 d, parts * r)``, zero elsewhere."""
    height, rank = len(B) // len(parts), B.shape[1]
    whole = np.zeros((len(PARTS), height, len(parts), rank), np.float32)
    for index, part in enumerate(parts):
        whole[PARTS.index(part), :, index] = B[index * height : (index + 1) * height]
    return whole.reshape(len(PARTS) * height, len(parts) * rank)


def _taken(whole: np.ndarray, parts: tuple[str, ...], rank: int) -> np.ndarray:
    """The inverse of ``_placed``."""
    blocks = whole.reshape(len(PARTS), -1, len(parts), rank)
    return np.concatenate([blocks[PARTS.index(part), :, index] for index, part in enumerate(parts)])

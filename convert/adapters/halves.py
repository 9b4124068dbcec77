"""SwiGLU's first layer in its halves, gate and value, as transformers 5 has it, and whole, as timm's packed fc1.

The halves are called ``blocks.3.mlp.fc1_g`` and ``blocks.3.mlp.fc1_x`` here. LoRA on each is exactly one of the whole:
A = [A_g; A_x] and B = [[B_g, 0], [0, B_x]] of twice the rank, or A and [B_g; B_x] where both halves have the same A.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from convert.adapters.leveled import A_NAME, B_NAME
from mlx_peft.core import patterns
from mlx_peft.core.border import Tensors
from mlx_peft.core.errors import UserError, shown

GATE, VALUE = "fc1_g", "fc1_x"
HALF = re.compile(r"(.+\.mlp\.fc1)_[gx]\.(.+)")
WHOLE = re.compile(r"(.+\.mlp\.fc1)\.(.+)")
MAGNITUDE = "lora_magnitude_vector"

Halves = dict[str, dict[str, np.ndarray]]


def joined(config: dict[str, Any], tensors: Tensors, path: Path) -> tuple[dict[str, Any], Tensors]:
    """PEFT's configuration and tensors with the halves as one layer; as they are where there are none.

    Raises:
        UserError: for another method than LoRA, and where what is there is no LoRA of halves.
    """
    layers: dict[str, Halves] = {}
    result: Tensors = {}
    for name, tensor in tensors.items():
        if match := HALF.fullmatch(name):
            half = name[match.end(1) + 1 : match.end(1) + 2]
            layers.setdefault(match[1], {}).setdefault(half, {})[match[2]] = tensor
        else:
            result[name] = tensor
    if not layers:
        return config, tensors
    if config.get("peft_type") != "LORA":
        raise UserError(
            f"{path}: gate_proj and up_proj are one layer here, fc1, and only of LoRA an adapter of each is one of it: "
            f"{shown(config.get('peft_type'))} over them is not supported"
        )
    ranks: dict[str, int] = {}
    alphas: dict[str, float] = {}
    for layer, halves in layers.items():
        whole, alphas[layer] = _whole(config, layer, halves, path)
        ranks[layer] = len(whole[A_NAME])
        result |= {f"{layer}.{kind}": tensor for kind, tensor in whole.items()}
    return config | {
        "target_modules": re.sub("fc1_[gx]", "fc1", config["target_modules"]),
        "rank_pattern": _pattern(config.get("rank_pattern"), ranks, config.get("r")),
        "alpha_pattern": _pattern(config.get("alpha_pattern"), alphas, config.get("lora_alpha")),
    }, result


def _pattern(given: Mapping[str, Any] | None, own: Mapping[str, float], default: Any) -> dict[str, Any]:
    """A pattern of PEFT's with what the whole layers have, in place of their halves."""
    others = {key: value for key, value in (given or {}).items() if not key.endswith((GATE, VALUE))}
    short = (
        {"fc1": next(iter(own.values()))} if len({*own.values()}) == 1 else {re.escape(k): v for k, v in own.items()}
    )
    return {key: value for key, value in short.items() if value != default or others} | others


def _whole(config: Mapping[str, Any], layer: str, halves: Halves, path: Path) -> tuple[Tensors, float]:
    """A, B and DoRA's magnitudes of the whole, by PEFT's names, and its alpha."""
    dora = bool(config.get("use_dora"))
    kinds = {A_NAME, B_NAME, *([MAGNITUDE] if dora else [])}
    for half, held in halves.items():
        if held.keys() != kinds or not held[A_NAME].ndim == held[B_NAME].ndim == 2:
            raise UserError(
                f"{path}: {layer}_{half} should have {', '.join(sorted(kinds))}, a matrix each of the factors"
            )
        rank, said = len(held[A_NAME]), _said(config, "rank_pattern", f"{layer}_{half}", "r")
        if not rank == said == held[B_NAME].shape[1]:
            raise UserError(f"{path}: {layer}_{half} has the rank {rank}, but its configuration says {said}")
    if len({(held[A_NAME].shape[1], len(held[B_NAME])) for held in halves.values()}) > 1:
        raise UserError(f"{path}: the halves of {layer} are of different shapes")
    if dora and len(halves) == 1:
        raise UserError(f"{path}: DoRA of gate_proj without up_proj, or the reverse, is not supported")
    scales = {half: _scaling(config, f"{layer}_{half}", len(held[A_NAME])) for half, held in halves.items()}
    first, present = next(iter(scales.values())), sorted(halves)
    A, B = [halves[half][A_NAME] for half in present], [halves[half][B_NAME] for half in present]
    whole: Tensors = {MAGNITUDE: np.concatenate([halves[half][MAGNITUDE] for half in present])} if dora else {}
    if len(present) == 2 and np.array_equal(A[0], A[1]) and len({*scales.values()}) == 1:
        whole |= {A_NAME: A[0], B_NAME: np.concatenate(B)}
    else:
        whole |= {A_NAME: np.concatenate(A), B_NAME: np.zeros((2 * len(B[0]), sum(map(len, A))), np.float32)}
        at = 0
        for half, own in zip(present, B, strict=True):
            row, end = "gx".index(half) * len(own), at + own.shape[1]
            whole[B_NAME][row : row + len(own), at:end] = own * np.float32(scales[half] / first)
            at = end
    return whole, first * _divided(config, len(whole[A_NAME]))


def _said(config: Mapping[str, Any], key: str, layer: str, usual: str) -> Any:
    """What a configuration says of a layer: by a pattern, or of all."""
    given = config.get(key) or {}
    found = patterns.first_at_end(given, layer)
    return config.get(usual) if found is None else given[found]


def _scaling(config: Mapping[str, Any], layer: str, rank: int) -> float:
    """What PEFT multiplies B A with."""
    return float(_said(config, "alpha_pattern", layer, "lora_alpha")) / _divided(config, rank)


def _divided(config: Mapping[str, Any], rank: int) -> float:
    """What alpha is divided by."""
    return float(rank**0.5 if config.get("use_rslora") else rank)


def parted(config: dict[str, Any], tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    """The inverse, for LoRA: both halves get the whole's A, and their rows of B and of DoRA's magnitudes."""
    result: Tensors = {}
    for name, tensor in tensors.items():
        match = WHOLE.fullmatch(name)
        if match is None or match[2] not in (A_NAME, B_NAME, MAGNITUDE):
            result[name] = tensor
            continue
        shares = (tensor, tensor) if match[2] == A_NAME else np.split(tensor, 2)
        result |= {f"{match[1]}_{half}.{match[2]}": share for half, share in zip("gx", shares, strict=True)}
    if result.keys() == tensors.keys():
        return config, tensors
    changed: dict[str, Any] = {"target_modules": _both(config["target_modules"])}
    for name in ("rank_pattern", "alpha_pattern"):
        if config.get(name):
            changed[name] = {_both(key): value for key, value in config[name].items()}
    return config | changed, result


def _both(expression: str) -> str:
    """An expression that fits both halves where the other fits the whole."""
    return re.sub(r"fc1(?![_\w])", f"({GATE}|{VALUE})", expression)

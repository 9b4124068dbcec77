"""LoRA as Hugging Face PEFT keeps it: one A and one B a layer, and with DoRA its magnitudes, under the layer's name."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from convert.adapters import codes
from convert.adapters.block_layers import (
    by_kind,
    by_layer,
    must_ask_no_more,
    must_be_numbers,
    must_have_rank,
    understood,
)
from convert.adapters.leveled import A_NAME, B_NAME, joined
from convert.adapters.parts import adapted, note, others, parts_of, picked, placed, spread, taken
from convert.adapters.separate import fused, is_separate, rows, shared
from convert.adapters.targeting import in_every_block, pattern, target_modules, where
from convert.files import listed
from mlx_peft.config.methods import LoRA
from mlx_peft.config.methods.lora import of_pattern
from mlx_peft.core.border import Tensors
from mlx_peft.core.errors import UserError
from mlx_peft.vit.parameters import is_head

MAGNITUDE = "lora_magnitude_vector"
REST = "lora_magnitude_rest"

READ = {"r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora", "lora_dropout"}
NO_MATTER = {"eva_config", "megatron_core", "qalora_group_size"}
"""Keys of PEFT's for LoRA that leave the forward pass alone."""

PLAIN_START = ("gaussian", "orthogonal", "eva")
"""PEFT's other named initialisations change the base, and the adapter alone is not the whole model."""

CONVERTED = ("pissa", "olora", "corda")
"""Those of them that PEFT can save as an ordinary LoRA for the unchanged base."""


def pack(method: LoRA, tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    """Configuration and tensors for PEFT.

    The parts of a fused qkv become one adapter of rank (parts * r): A holds the parts' A one above the other already, B
    gets each part's block in its rows and columns. What counts from its start (PiSSA, OLoRA) becomes LoRA of twice the
    rank on the weights as they were, [A; A0] and [B, -B0], which is PEFT's own conversion. Alpha grows with the rank so
    that the scaling stays.
    """
    tensors, packed = codes.stored(tensors)
    packed |= {name: tensor for name, tensor in tensors.items() if is_head(name)}
    ranks: dict[str, int] = {}
    alphas: dict[str, float] = {}
    for layer, held in _by_layer(tensors).items():
        parts = parts_of(method.targets, layer)
        A, B = held["lora_A"], placed(held["lora_B"], parts)
        if method.start_kept is not None:
            A0, B0 = (held[name] for name in method.start_kept)
            A, B = np.concatenate([A, A0]), np.concatenate([B, -placed(B0, parts)], axis=1)
        packed |= {f"{layer}.{A_NAME}": A, f"{layer}.{B_NAME}": B}
        if method.dora:
            packed[f"{layer}.{MAGNITUDE}"] = _woven(held[MAGNITUDE], held.get(REST), parts)
        ranks[layer] = len(A)
        growth = len(A) // method.rank_of(fused(layer))
        alphas[layer] = _whole(_alpha(method, fused(layer)) * (growth**0.5 if method.rslora else growth))
    rank, rank_pattern = pattern(ranks)
    alpha, alpha_pattern = pattern(alphas)
    return {
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": rank_pattern,
        "alpha_pattern": alpha_pattern,
        "lora_dropout": method.dropout,
        "use_rslora": method.rslora,
        "use_dora": method.dora,
        "bias": "none",
        "fan_in_fan_out": False,
        "target_modules": target_modules(
            ranks, every_block=method.blocks is None and 0 not in method.rank_pattern.values()
        ),
    }, packed


def apart(method: LoRA, tensors: Tensors) -> Tensors:
    """The tensors with q, k and v on layers of their own: parts are such already, a whole qkv is three with one A.

    The magnitudes of parts that are not adapted are left out: those of rows that stay as they were.
    """
    found = {name: tensor for name, tensor in tensors.items() if is_head(name)}
    for layer, held in _by_layer(tensors).items():
        parts = parts_of(method.targets, layer)
        for kind, tensor in held.items():
            if kind != REST:
                split = shared if kind.endswith("_A") else rows
                found |= {f"{own}.{kind}": share for own, share in split(tensor, layer, parts).items()}
    return found


def unpack(method: LoRA, packed: Tensors) -> Tensors:
    """What ``pack`` was given, bit for bit. Raises ValueError where the tensors are not of this method."""
    packed, own = codes.found(packed)
    tensors, layers = by_kind(packed, _kinds(method.dora), "LoRA")
    tensors |= own
    for layer, held in layers.items():
        A, B, parts = held[A_NAME], held[B_NAME], parts_of(method.targets, layer)
        rank = method.rank_of(layer) * max(len(parts), 1)
        if not len(A) == B.shape[1] == rank * (1 if method.start_kept is None else 2):
            raise ValueError(f"{layer} has a lora_A {A.shape} and a lora_B {B.shape}, which is not the method's rank")
        tensors |= {f"{layer}.lora_A": A[:rank], f"{layer}.lora_B": taken(B[:, :rank], parts)}
        if method.start_kept is not None:
            first = A[rank:], -taken(B[:, rank:], parts)
            tensors |= {f"{layer}.{name}": factor for name, factor in zip(method.start_kept, first, strict=True)}
        if method.dora:
            tensors[f"{layer}.{MAGNITUDE}"] = picked(held[MAGNITUDE], parts) if parts else held[MAGNITUDE]
        if method.dora and parts and others(parts):
            tensors[f"{layer}.{REST}"] = picked(held[MAGNITUDE], others(parts))
    return tensors


def notes(method: LoRA, tensors: Tensors) -> list[str]:
    """What PEFT does not see in the file, and would do otherwise were it to train the adapter further."""
    times = len(adapted(method.targets))
    moves = "rows and blocks move that are not trained here"
    sentences = note(method.targets, tensors, f", of rank {times} times as large", moves)
    if method.start_kept is not None:
        sentences.append(
            f"to Hugging Face PEFT, LoRA with init: {method.init} is LoRA of twice the rank on the weights as they "
            "were; trained further there, the initial factors move too"
        )
    if method.own_codes:
        sentences.append(
            f"it was trained over codes that it chose itself (init: {method.init}), of which Hugging Face PEFT knows "
            "nothing: there it meets other weights, and gives other logits"
        )
    if method.lora_plus != 1:
        sentences.append(
            "Hugging Face PEFT has no word for LoRA+ in an adapter: to train it further there, give "
            f"create_loraplus_optimizer loraplus_lr_ratio={method.lora_plus:g} (there biases and magnitudes get it too)"
        )
    return sentences


def from_peft(config: dict[str, Any], packed: Tensors, path: Path) -> tuple[LoRA, Tensors]:
    """An adapter that PEFT itself wrote for a timm ViT. What it adapts in some blocks has the rank 0 in others.

    Raises:
        UserError: for what is more than LoRA on the linear layers of the blocks, or has q, k and v on layers of their
            own and not the same ones in each block.
    """
    _must_ask_no_more(config, path)
    dora = bool(config.get("use_dora"))
    layers = _layers(packed, path, dora)
    with understood(LoRA, "LoRA", path):
        every = layers if any(map(is_separate, layers)) else in_every_block(layers)
        targets, blocks = where(config, every, path)
        left_out = {re.escape(layer): 0 for layer in every if layer not in layers}
        config = config | {
            field: _fitting(config.get(field) or {}, layers) for field in ("rank_pattern", "alpha_pattern")
        }
        must_be_numbers(config, "lora_alpha", path)
        if any(map(is_separate, layers)):
            config, layers = joined(config, layers, path)
        method = LoRA.model_validate({
            "rank": config["r"],
            "alpha": config["lora_alpha"],
            "rank_pattern": left_out | config["rank_pattern"],
            "alpha_pattern": config["alpha_pattern"],
            "dropout": config.get("lora_dropout", 0),
            "rslora": config.get("use_rslora", False),
            "dora": dora,
            "targets": targets,
            "blocks": blocks,
        })  # fmt: skip
    for layer, held in layers.items():
        rank, count = method.rank_of(layer), max(len(parts_of(targets, layer)), 1)
        must_have_rank(layer, len(held[A_NAME]), rank * count, path)
    tensors = {name: tensor for name, tensor in packed.items() if is_head(name)}
    for layer, held in layers.items():
        tensors |= {f"{layer}.{name.removesuffix('.weight')}": tensor for name, tensor in held.items()}
    return method, tensors


def _fitting(given: dict[str, Any], layers: Collection[str]) -> dict[str, Any]:
    """What of a pattern is for one of the layers."""
    return {key: value for key, value in given.items() if any(of_pattern({key: True}, layer) for layer in layers)}


def _kinds(dora: bool) -> set[str]:
    """What a layer has of PEFT's tensors."""
    return {A_NAME, B_NAME} | ({MAGNITUDE} if dora else set())


def _woven(trained: np.ndarray, rest: np.ndarray | None, parts: tuple[str, ...]) -> np.ndarray:
    """The magnitudes of all rows, from those of the adapted parts and of the others."""
    if not parts:
        return trained
    given = [trained] if rest is None else [trained, rest]
    return spread(np.concatenate(given), parts + others(parts), 0)


def _alpha(method: LoRA, layer: str) -> float:
    return float(of_pattern(method.alpha_pattern, layer) or method.alpha)


def _whole(number: float) -> float:
    """Whole numbers as PEFT writes them."""
    return int(number) if number == int(number) else number


def _by_layer(tensors: Tensors) -> dict[str, Tensors]:
    """A model's tensors by layer and kind, heads left out; in the model's order."""
    found: dict[str, Tensors] = {}
    for name, tensor in tensors.items():
        layer, _, kind = name.rpartition(".")
        if not is_head(name):
            found.setdefault(layer, {})[kind] = tensor
    return dict(sorted(found.items(), key=lambda item: (int(item[0].split(".")[1]), item[0])))


def _must_ask_no_more(config: dict[str, Any], path: Path) -> None:
    start = config.get("init_lora_weights")
    accepted = {"init_lora_weights"} if start in (True, *PLAIN_START) else set()
    converts = str(start).startswith(CONVERTED)
    advice = "; PEFT converts it on saving, given path_initial_model_for_weight_conversion" if converts else ""
    must_ask_no_more(config, READ | NO_MATTER | accepted, path, advice)


def _layers(packed: Tensors, path: Path, dora: bool) -> dict[str, Tensors]:
    """The tensors by layer and name. Raises UserError for anything else but heads, and where they do not match."""
    if convolutions := sorted({name.partition(".lora_")[0] for name, tensor in packed.items() if tensor.ndim == 4}):
        raise UserError(
            f"{path}: {listed(convolutions)} is a convolution, and adapters are put on linear layers of the blocks "
            "alone: in PEFT, target_modules should be a pattern that begins with the name of the blocks, such as "
            r"'.*blocks\.\d+\..*\.(qkv|proj)' of timm's models or '.*layer\.\d+\..*(query|value)' of transformers'"
        )
    layers = by_layer(packed, _kinds(dora), "LoRA", path)
    for layer, held in layers.items():
        A, B, m = held[A_NAME], held[B_NAME], held.get(MAGNITUDE)
        fits = A.ndim == B.ndim == 2 and len(A) == B.shape[1]
        if not fits or (m is not None and m.shape != (len(B),)):
            shapes = ", ".join(f"{kind} {tensor.shape}" for kind, tensor in held.items())
            wanted = "a lora_A (r, in) and a lora_B (out, r)" + (f" and a {MAGNITUDE} (out,)" if dora else "")
            raise UserError(f"{path}: {layer} needs {wanted}, but has {shapes}")
    return layers

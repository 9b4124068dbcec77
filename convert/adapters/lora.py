"""LoRA as Hugging Face PEFT keeps it: one A and one B a layer, and with DoRA its magnitudes, under the layer's name."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from convert.adapters.block_layers import PATH
from convert.adapters.targeting import pattern, target_modules, where
from convert.files import listed
from mlx_peft.config.methods import LoRA
from mlx_peft.config.methods.lowrank import of_pattern
from mlx_peft.core.border import Tensors
from mlx_peft.core.errors import UserError, shortened
from mlx_peft.core.problems import reason
from mlx_peft.vit.parameters import is_head
from mlx_peft.vit.sites import PARTS

LAYER = re.compile(rf"({PATH})\.(lora_[AB]\.weight|lora_magnitude_vector)")
MAGNITUDE = "lora_magnitude_vector"

READ = {"r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora", "lora_dropout", "peft_type"}
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

CONVERTED = ("pissa", "olora", "corda")
"""Those of them that PEFT can save as an ordinary LoRA for the unchanged base."""


def pack(method: LoRA, tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    """Configuration and tensors for PEFT.

    The parts of a fused qkv become one adapter of rank (parts * r): A holds the parts' A one above the other already, B
    gets each part's block in its rows and columns. PiSSA becomes LoRA of twice the rank on the weights as they were,
    [A; A0] and [B, -B0], which is PEFT's own conversion. Alpha grows with the rank so that the scaling stays.
    """
    packed = {name: tensor for name, tensor in tensors.items() if is_head(name)}
    ranks: dict[str, int] = {}
    alphas: dict[str, float] = {}
    for layer, held in _by_layer(tensors).items():
        parts = _parts(method, layer)
        A, B = held["lora_A"], placed(held["lora_B"], parts)
        if method.init == "pissa":
            A = np.concatenate([A, held["pissa_A"]])
            B = np.concatenate([B, -placed(held["pissa_B"], parts)], axis=1)
        packed |= {f"{layer}.lora_A.weight": A, f"{layer}.lora_B.weight": B}
        if method.dora:
            packed[f"{layer}.{MAGNITUDE}"] = _woven(held[MAGNITUDE], held.get("lora_magnitude_rest"), parts)
        ranks[layer] = len(A)
        growth = len(A) // method.rank_of(layer)
        alphas[layer] = _whole(_alpha(method, layer) * (growth**0.5 if method.rslora else growth))
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
        "target_modules": target_modules(ranks, every_block=method.blocks is None),
    }, packed


def unpack(method: LoRA, packed: Tensors) -> Tensors:
    """What ``pack`` was given, bit for bit. Raises ValueError where the tensors are not of this method."""
    tensors = {name: tensor for name, tensor in packed.items() if is_head(name)}
    kinds = {"lora_A", "lora_B"} | ({MAGNITUDE} if method.dora else set())
    for layer, held in _stored(packed).items():
        if held.keys() != kinds:
            raise ValueError(f"{layer} has {listed(sorted(held))}, where {listed(sorted(kinds))} should be")
        A, B, parts = held["lora_A"], held["lora_B"], _parts(method, layer)
        rank = method.rank_of(layer) * max(len(parts), 1)
        if not len(A) == B.shape[1] == rank * (2 if method.init == "pissa" else 1):
            raise ValueError(f"{layer} has a lora_A {A.shape} and a lora_B {B.shape}, which is not the method's rank")
        tensors |= {f"{layer}.lora_A": A[:rank], f"{layer}.lora_B": taken(B[:, :rank], parts)}
        if method.init == "pissa":
            tensors |= {f"{layer}.pissa_A": A[rank:], f"{layer}.pissa_B": -taken(B[:, rank:], parts)}
        if method.dora:
            thirds = dict(zip(PARTS, np.split(held[MAGNITUDE], len(PARTS)), strict=True)) if parts else {}
            tensors[f"{layer}.{MAGNITUDE}"] = np.concatenate([thirds[p] for p in parts]) if parts else held[MAGNITUDE]
            if rest := [third for part, third in thirds.items() if part not in parts]:
                tensors[f"{layer}.lora_magnitude_rest"] = np.concatenate(rest)
    return tensors


def notes(method: LoRA) -> list[str]:
    """What PEFT does not see in the file, and would do otherwise were it to train the adapter further."""
    said = []
    if parts := [part for part in PARTS if part in method.targets]:
        said.append(
            f"to Hugging Face PEFT, what adapts {' and '.join(parts)} is "
            f"one adapter of the whole qkv, of rank {len(parts)} times as "
            "large; trained further there, rows and blocks move that are not trained here"
        )
    if method.init == "pissa":
        said.append(
            "to Hugging Face PEFT, PiSSA is LoRA of twice the rank on the weights as they were; trained further there, "
            "the initial factors move too"
        )
    if method.lora_plus != 1:
        said.append(
            "Hugging Face PEFT has no word for LoRA+ in an adapter: to train it further there, give "
            f"create_loraplus_optimizer loraplus_lr_ratio={method.lora_plus:g} (there biases and magnitudes get it too)"
        )
    return said


def from_peft(config: dict[str, Any], packed: Tensors, path: Path) -> tuple[LoRA, Tensors]:
    """An adapter that PEFT itself wrote for a timm ViT.

    Raises:
        UserError: for what is more than LoRA on the linear layers of the blocks, or not on the same ones in each block.
    """
    _must_be_plain(config, path)
    dora = bool(config.get("use_dora"))
    layers = _layers(packed, path, dora)
    try:
        targets, blocks = where(config, layers, path)
        patterns = {
            field: {
                key: value
                for key, value in (config.get(field) or {}).items()
                if any(of_pattern({key: True}, layer) for layer in layers)
            }
            for field in ("rank_pattern", "alpha_pattern")
        }
        method = LoRA.model_validate({
            "rank": config["r"],
            "alpha": config["lora_alpha"],
            **patterns,
            "dropout": config.get("lora_dropout", 0),
            "rslora": config.get("use_rslora", False),
            "dora": dora,
            "targets": targets,
            "blocks": blocks,
        })  # fmt: skip
    except (KeyError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
        raise UserError(f"{path}: its LoRA configuration is not understood: {reason(error, LoRA)}") from error
    for layer, held in layers.items():
        if (rank := method.rank_of(layer)) != len(held["lora_A"]):
            raise UserError(f"{path}: {layer} has the rank {len(held['lora_A'])}, but its configuration says {rank}")
    heads = {name: tensor for name, tensor in packed.items() if is_head(name)}
    return method, heads | {f"{layer}.{kind}": t for layer, held in layers.items() for kind, t in held.items()}


def placed(B: np.ndarray, parts: tuple[str, ...]) -> np.ndarray:
    """The parts' B ``(parts * d, r)`` as ``(3 d, parts * r)``, zero elsewhere; that of a whole layer as it is."""
    if not parts:
        return B
    height, rank = len(B) // len(parts), B.shape[1]
    whole = np.zeros((len(PARTS), height, len(parts), rank), np.float32)
    for index, part in enumerate(parts):
        whole[PARTS.index(part), :, index] = B[index * height : (index + 1) * height]
    return whole.reshape(len(PARTS) * height, len(parts) * rank)


def taken(whole: np.ndarray, parts: tuple[str, ...]) -> np.ndarray:
    """The inverse of ``placed``."""
    if not parts:
        return np.ascontiguousarray(whole)
    blocks = whole.reshape(len(PARTS), len(whole) // len(PARTS), len(parts), -1)
    return np.concatenate([blocks[PARTS.index(part), :, index] for index, part in enumerate(parts)])


def _parts(method: LoRA, layer: str) -> tuple[str, ...]:
    """Which of q, k and v are adapted in a layer; none where it is adapted as a whole."""
    return tuple(part for part in PARTS if part in method.targets) if layer.endswith(".qkv") else ()


def _woven(trained: np.ndarray, rest: np.ndarray | None, parts: tuple[str, ...]) -> np.ndarray:
    """The magnitudes of all rows, from those of the adapted parts and of the others."""
    if not parts or rest is None:
        return trained
    others = [part for part in PARTS if part not in parts]
    thirds = dict(zip(parts, np.split(trained, len(parts)), strict=True))
    thirds |= dict(zip(others, np.split(rest, len(others)), strict=True))
    return np.concatenate([thirds[part] for part in PARTS])


def _alpha(method: LoRA, layer: str) -> float:
    return float(of_pattern(method.alpha_pattern, layer) or method.alpha)


def _whole(number: float) -> float:
    """Whole numbers as PEFT writes them."""
    return int(number) if number == int(number) else number


def _by_layer(tensors: Tensors) -> dict[str, Tensors]:
    """A learner's tensors by layer and kind, heads left out; in the model's order."""
    found: dict[str, Tensors] = {}
    for name, tensor in tensors.items():
        layer, _, kind = name.rpartition(".")
        if not is_head(name):
            found.setdefault(layer, {})[kind] = tensor
    return dict(sorted(found.items(), key=lambda item: (int(item[0].split(".")[1]), item[0])))


def _stored(packed: Tensors) -> dict[str, Tensors]:
    """PEFT's tensors by layer and kind, heads left out. Raises ValueError for any other tensor."""
    found: dict[str, Tensors] = {}
    unknown = []
    for name, tensor in packed.items():
        if match := LAYER.fullmatch(name):
            found.setdefault(match[1], {})[match[2].removesuffix(".weight")] = tensor
        elif not is_head(name) or ".lora_" in name:
            unknown.append(name)
    if unknown:
        raise ValueError(f"tensors that are no LoRA of a linear layer in a block: {listed(sorted(unknown))}")
    return found


def _must_be_plain(config: dict[str, Any], path: Path) -> None:
    odd = {key: value for key, value in config.items() if value and key not in READ | NO_MATTER}
    if odd.get("bias") == "none":
        del odd["bias"]
    if odd.get("init_lora_weights") in (True, *PLAIN_START):
        del odd["init_lora_weights"]
    if odd:
        converts = str(odd.get("init_lora_weights")).startswith(CONVERTED)
        advice = "; PEFT converts it on saving, given path_initial_model_for_weight_conversion" if converts else ""
        told = listed(f"{key}: {shortened(str(value), 60)}" for key, value in odd.items())
        raise UserError(f"{path}: not supported: {told}{advice}")


def _layers(packed: Tensors, path: Path, dora: bool) -> dict[str, Tensors]:
    """The tensors by layer and kind. Raises UserError for anything else but heads, and where they do not match."""
    if convolutions := sorted({name.partition(".lora_")[0] for name, tensor in packed.items() if tensor.ndim == 4}):
        raise UserError(
            f"{path}: {listed(convolutions)} is a convolution, and adapters are put on linear layers of the blocks "
            r"alone: in PEFT, a target such as '.*blocks\.\d+\..*\.(qkv|proj)' leaves it out"
        )
    try:
        layers = _stored(packed)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error
    if not layers:
        raise UserError(f"{path}: no LoRA tensors in it")
    for layer, held in layers.items():
        A, B, m = held.get("lora_A"), held.get("lora_B"), held.get(MAGNITUDE)
        fits = A is not None and B is not None and A.ndim == B.ndim == 2 and len(A) == B.shape[1]
        if not fits or (m is not None) != dora or (m is not None and B is not None and m.shape != (len(B),)):
            shapes = ", ".join(f"{kind} {tensor.shape}" for kind, tensor in held.items())
            wanted = "a lora_A (r, in) and a lora_B (out, r)" + (f" and a {MAGNITUDE} (out,)" if dora else "")
            raise UserError(f"{path}: {layer} needs {wanted}, but has {shapes}")
    return layers

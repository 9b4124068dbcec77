"""AdaLoRA as Hugging Face PEFT keeps it: the triplets that are left of each layer, and which they were.

``P.lora_A (k, in)``, ``P.lora_B (out, k)``, ``P.lora_E (k, 1)``; ``rank_pattern`` in the configuration has ``init_r``
truth values for each layer, of which k are true. The scaling goes by ``init_r`` whatever is left. k may be 0.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from convert.adapters.block_layers import by_kind, by_layer, must_ask_no_more, understood
from convert.adapters.parts import note, parts_of, placed, taken
from convert.adapters.separate import is_separate, padded, part_of, rows, shared, stacked, together
from convert.adapters.targeting import target_modules, where
from convert.files import listed
from mlx_peft.config.methods import AdaLoRA
from mlx_peft.core.border import Tensors
from mlx_peft.core.errors import UserError
from mlx_peft.vit.parameters import is_head
from mlx_peft.vit.sites import PARTS

MATRICES = ("lora_A", "lora_B", "lora_E")
SCHEDULE = {"tinit": "t_init", "tfinal": "t_final", "deltaT": "delta_t", "beta1": "beta1", "beta2": "beta2"}
FIELDS = SCHEDULE | {"lora_dropout": "dropout", "orth_reg_weight": "orth_weight"}
"""PEFT's names of the fields that both have, and ours."""

READ = {"init_r", "target_r", "lora_alpha", "rank_pattern", *FIELDS}
NO_MATTER = {"init_lora_weights", "megatron_core", "qalora_group_size", "r", "total_step"}
"""These keys of PEFT's configuration change nothing in an AdaLoRA that is trained already."""


def pack(method: AdaLoRA, tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    """Configuration and tensors for PEFT, shrunk to the triplets whose E is not zero.

    Before training all E are zero, and all triplets are kept. The parts of a fused qkv become one adapter of the whole,
    each part's B in its own rows; all layers then have the ``init_r`` of qkv, with nothing kept beyond their own ranks,
    and alpha grows so that the scaling stays. How many steps the run had, PEFT wants to know but an adapter does not
    say: ``total_step`` is the fewest that its schedule allows.
    """
    packed = {name: tensor for name, tensor in tensors.items() if is_head(name)}
    layers = sorted({name.rpartition(".")[0] for name in tensors if not is_head(name)})
    whole = not any(tensors[f"{layer}.lora_E"].any() for layer in layers)
    init_r = max(len(tensors[f"{layer}.lora_E"]) for layer in layers)
    pattern = {}
    for layer in layers:
        A, B, E = (tensors[f"{layer}.{kind}"] for kind in MATRICES)
        B = placed(B, parts_of(method.targets, layer))
        keep = np.full(len(E), True) if whole else E[:, 0] != 0
        packed |= {f"{layer}.lora_A": A[keep], f"{layer}.lora_B": B[:, keep], f"{layer}.lora_E": E[keep]}
        pattern[f"{layer}.lora_E"] = np.pad(keep, (0, init_r - len(keep))).tolist()
    alpha = method.alpha * (init_r + 1e-5) / (method.init_rank + 1e-5)
    return {
        **{theirs: getattr(method, ours) for theirs, ours in FIELDS.items()},
        "init_r": init_r,
        "target_r": method.target_rank,
        "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
        "rank_pattern": None if all(map(all, pattern.values())) else pattern,
        "total_step": method.t_init + method.t_final + 1,
        "bias": "none",
        "fan_in_fan_out": False,
        "target_modules": target_modules(layers, every_block=method.blocks is None),
    }, packed


def unpack(method: AdaLoRA, packed: Tensors) -> Tensors:
    """What ``pack`` was given, but for what it left out: the triplets come first, then as many zeros as are missing.

    Raises ValueError where the tensors are not of this method.
    """
    tensors, layers = by_kind(packed, MATRICES, "AdaLoRA")
    for layer, held in layers.items():
        A, B, E = (held[kind] for kind in MATRICES)
        parts = parts_of(method.targets, layer)
        most = method.init_rank * max(len(parts), 1)
        if not A.ndim == B.ndim == E.ndim == 2 or not len(A) == B.shape[1] == len(E) <= most:
            raise ValueError(f"{layer} has a lora_A {A.shape}, lora_B {B.shape} and lora_E {E.shape}, of rank {most}")
        places = _places(B, parts, method.init_rank)
        for kind, tensor in (("lora_A", A), ("lora_E", E), ("lora_B", B.T)):
            filled = np.zeros((most, tensor.shape[1]), np.float32)
            filled[places] = tensor
            tensors[f"{layer}.{kind}"] = taken(filled.T, parts) if kind == "lora_B" else filled
    return tensors


def notes(method: AdaLoRA, tensors: Tensors) -> list[str]:
    """What PEFT does otherwise in silence, were it to train the adapter further."""
    found = ["the adapter does not know how many steps the run had: total_step is the least that PEFT accepts"]
    if method.orth_weight:
        found.append(
            "Hugging Face PEFT adds the orthogonality penalty to no model that returns a tensor, as timm's do: trained "
            "further there, the adapter is without it"
        )
    found += note(method.targets, tensors, "", "rows move that are not trained here")
    return found


def from_peft(config: dict[str, Any], packed: Tensors, path: Path) -> tuple[AdaLoRA, Tensors]:
    """An adapter that PEFT itself wrote for a timm ViT.

    Raises:
        UserError: for what is more than AdaLoRA on the linear layers of the blocks.
    """
    must_ask_no_more(config, READ | NO_MATTER, path)
    layers = by_layer(packed, MATRICES, "AdaLoRA", path)
    targets, blocks = where(config, layers, path)
    with understood(AdaLoRA, "AdaLoRA", path):
        method = AdaLoRA.model_validate({
            **{ours: config[theirs] for theirs, ours in FIELDS.items()},
            "init_rank": config["init_r"],
            "target_rank": min(config["target_r"], config["init_r"]),
            "alpha": config["lora_alpha"],
            "targets": targets,
            "blocks": blocks,
        })  # fmt: skip
    try:
        return method, unpack(method, _joined(packed, layers, method.init_rank))
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error


def apart(method: AdaLoRA, tensors: Tensors) -> Tensors:
    """The tensors with q, k and v on layers of their own: parts are such already, a whole qkv is three with one A."""
    found = {}
    for name, tensor in tensors.items():
        layer, _, kind = name.rpartition(".")
        if is_head(name):
            found[name] = tensor
        else:
            split = rows if kind == "lora_B" else shared
            shares = split(tensor, layer, parts_of(method.targets, layer))
            found |= {f"{own}.{kind}": share for own, share in shares.items()}
    return found


def _joined(packed: Tensors, layers: dict[str, Tensors], rank: int) -> Tensors:
    """q, k and v on layers of their own as PEFT would have their parts: each with ``rank`` triplets, B in its place.

    Raises ValueError where a layer has more.
    """
    result = {name: tensor for name, tensor in packed.items() if is_head(name)}
    for layer, names in together({name: name for name in layers}).items():
        held = [layers[name] for name in names]
        if not is_separate(names[0]):
            result |= {f"{layer}.{kind}": tensor for kind, tensor in held[0].items()}
            continue
        if (
            any(one[kind].ndim != 2 for one in held for kind in MATRICES)
            or max(len(one["lora_A"]) for one in held) > rank
        ):
            raise ValueError(f"the parts of {layer} need a lora_A, a lora_B and a lora_E of at most {rank} triplets")
        parts = tuple(part_of(name) for name in names)
        for kind in ("lora_A", "lora_E"):
            result[f"{layer}.{kind}"] = stacked([padded(one[kind], rank) for one in held], f"{layer}.{kind}")
        whole = stacked([padded(one["lora_B"].T, rank).T for one in held], f"{layer}.lora_B")
        result[f"{layer}.lora_B"] = placed(whole, parts)
    return result


def _places(B: np.ndarray, parts: tuple[str, ...], rank: int) -> np.ndarray:
    """Where the triplets go among ``rank`` of each part, in their order; a column of B tells whose it is by its rows.

    Raises ValueError where a column has rows of two parts, or of another one, or a part gets more than its rank.
    """
    count = B.shape[1]
    if not parts or count == rank * len(parts):
        return np.arange(count)
    filled = (B.reshape(len(PARTS), len(B) // len(PARTS), count) != 0).any(1)
    own = filled[[PARTS.index(part) for part in parts]]
    owner = own.argmax(0)
    sizes = np.bincount(owner, minlength=len(parts))
    if (filled.sum(0) > 1).any() or (filled.any(0) & ~own.any(0)).any() or (sizes > rank).any():
        raise ValueError(f"the columns of a lora_B of qkv are not of {listed(parts)} with at most {rank} each")
    order = np.zeros(count, int)
    for part in range(len(parts)):
        order[owner == part] = part * rank + np.arange(sizes[part])
    return order

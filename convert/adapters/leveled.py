"""LoRAs of q, k and v, on layers of their own, brought to one rank and one scaling."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from convert.adapters.block_layers import must_have_rank
from convert.adapters.separate import padded, stacked, together
from convert.adapters.targeting import pattern
from mlx_peft.config.methods.lora import of_pattern
from mlx_peft.core.border import Tensors

A_NAME, B_NAME = "lora_A.weight", "lora_B.weight"
"""PEFT's names of a layer's factors."""


def joined(config: dict[str, Any], layers: dict[str, Tensors], path: Path) -> tuple[dict[str, Any], dict[str, Tensors]]:
    """q, k and v on layers of their own as parts of one: their A above each other, their B likewise.

    All have the largest rank and its scaling then: others get zeros for what they lack, and their B the rest of their
    own scaling. With one rank and one alpha no number changes.
    """
    ranks = {layer: of_pattern(config["rank_pattern"], layer) or config["r"] for layer in layers}
    alphas = {layer: of_pattern(config["alpha_pattern"], layer) or config["lora_alpha"] for layer in layers}
    for layer, held in layers.items():
        must_have_rank(layer, len(held[A_NAME]), ranks[layer], path)
    found: dict[str, Tensors] = {}
    rank_of, alpha_of = {}, {}
    for layer, names in together({name: name for name in layers}).items():
        most = max(names, key=lambda name: ranks[name])
        rank_of[layer], alpha_of[layer] = ranks[most], alphas[most]
        shares = [leveled(layers[name], ranks[most], ratio(config, ranks, alphas, name, most)) for name in names]
        found[layer] = {kind: stacked([one[kind] for one in shares], f"{layer}.{kind}") for kind in shares[0]}
    (rank, rank_pattern), (alpha, alpha_pattern) = pattern(rank_of), pattern(alpha_of)
    return config | {
        "r": rank, "rank_pattern": rank_pattern, "lora_alpha": alpha, "alpha_pattern": alpha_pattern,
    }, found  # fmt: skip


def leveled(held: Tensors, rank: int, ratio: float) -> Tensors:
    """The tensors of a layer with zeros up to a rank, and so many times their scaling."""
    A, B = held[A_NAME], held[B_NAME]
    B = B if ratio == 1 else (B * ratio).astype(np.float32)
    if not np.isfinite(B).all():
        raise ValueError("the scalings of q, k and v are too far apart for one")
    return held | {A_NAME: padded(A, rank), B_NAME: padded(B.T, rank).T}


def ratio(config: dict[str, Any], ranks: dict[str, int], alphas: dict[str, float], layer: str, other: str) -> float:
    """How many times the scaling of another layer the scaling of one is."""
    ranked = ranks[other] / ranks[layer]
    return alphas[layer] / alphas[other] * (ranked**0.5 if config.get("use_rslora") else ranked)

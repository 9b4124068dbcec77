"""torch's attention as Hugging Face PEFT adapts it: one module, whose two projections have LoRA together or not at all.

Both have the same rank and scaling. One that is not adapted here gets a LoRA of zeros, which adds nothing.

PEFT (0.21.2) adds the update of the output projection twice: ``MultiheadAttention.merge`` writes it into the weight,
and has the layer inside merge it once more (https://github.com/huggingface/peft/pull/3774). An adapter was trained so,
and means that: its B counts twice here, and half of ours is written.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from convert.adapters.leveled import A_NAME, B_NAME, leveled, ratio
from convert.adapters.targeting import pattern
from mlx_peft.config.methods.lora import of_pattern
from mlx_peft.core.border import Tensors
from mlx_peft.core.errors import UserError
from mlx_peft.vit.sites import PARTS

PAIR = IN, OUT = "attn.qkv", "attn.proj"
TIMES = np.float32(2)
"""PEFT adds the update of the output projection so many times."""

FIELDS = {"rank_pattern": "r", "alpha_pattern": "lora_alpha"}


def paired(config: dict[str, Any], tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    """Configuration and tensors of PEFT's for timm, with both of a block's layers wherever there is one.

    Raises:
        UserError: where another method than LoRA adapts one, which PEFT cannot.
    """
    layers = dict.fromkeys(
        name.partition(f".{kind}")[0] for name in tensors for kind in (A_NAME, B_NAME) if kind in name
    )
    adapted = dict.fromkeys(name.partition(".attn.")[0] for name in tensors if ".attn." in name)
    if not adapted:
        return config, tensors
    if not layers or config.get("use_dora"):
        raise UserError(
            "to the attention of torch, Hugging Face PEFT can put plain LoRA and nothing else: name targets of the MLP"
        )
    ranks, alphas = (
        {layer: of_pattern(config[patterns], layer) or config[value] for layer in layers}
        for patterns, value in FIELDS.items()
    )
    result = dict(tensors)
    for block in adapted:
        names = [f"{block}.{one}" for one in PAIR]
        most = max((name for name in names if name in ranks), key=lambda name: ranks[name])
        for name in names:
            held = {kind: tensors[f"{name}.{kind}"] for kind in (A_NAME, B_NAME)} if name in ranks else None
            if held is None:
                held, times = _nothing(name, len(tensors[f"{most}.{A_NAME}"][0])), 1.0
            else:
                times = ratio(config, ranks, alphas, name, most)
            result |= {f"{name}.{kind}": tensor for kind, tensor in leveled(held, ranks[most], times).items()}
        ranks |= dict.fromkeys(names, ranks[most])
        alphas |= dict.fromkeys(names, alphas[most])
        result |= {f"{names[1]}.{B_NAME}": result[f"{names[1]}.{B_NAME}"] / TIMES}
    (rank, rank_pattern), (alpha, alpha_pattern) = pattern(ranks), pattern(alphas)
    return config | {
        "r": rank, "rank_pattern": rank_pattern, "lora_alpha": alpha, "alpha_pattern": alpha_pattern,
    }, result  # fmt: skip


def as_it_acts(tensors: Tensors) -> Tensors:
    """Tensors of PEFT's under timm's names, with the output projection's update as often as PEFT adds it."""
    return {name: tensor * TIMES if name.endswith(f"{OUT}.{B_NAME}") else tensor for name, tensor in tensors.items()}


def _nothing(layer: str, dim: int) -> Tensors:
    """A LoRA of rank 0."""
    outputs = dim * (len(PARTS) if layer.endswith(IN) else 1)
    return {A_NAME: np.zeros((0, dim), np.float32), B_NAME: np.zeros((outputs, 0), np.float32)}

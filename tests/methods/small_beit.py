"""timm's ``Beit``, whose positions are added to scores, on BEiT's plan in small; and what differs from it."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from timm.models.beit import Beit

ARGS: dict[str, Any] = {
    "family": "beit", "patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 3, "init_values": 0.1,
    "qkv": "biases_apart", "pos_embed": False, "positions": "relative", "global_pool": "avg",
}  # fmt: skip
"""BEiT's plan on a small scale."""

KINDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "of each block": ({}, {}),
    "shared": ({"positions": "relative_shared"}, {"use_rel_pos_bias": False, "use_shared_rel_pos_bias": True}),
    "beside learnt ones, without biases of q and v, pooled by the class token": (
        {"pos_embed": True, "qkv_bias": False, "global_pool": "token"},
        {"use_abs_pos_emb": True, "qkv_bias": False, "global_pool": "token"},
    ),
    "with swiglu": (
        {"mlp_layer": "swiglu", "act_layer": "silu", "scale_mlp_norm": True}, {"swiglu_mlp": True, "scale_mlp": True}
    ),
}  # fmt: skip
"""Fields of ours and timm's arguments in which each differs from BEiT."""


def of_timm(weights: dict[str, np.ndarray], **changes: Any) -> Beit:
    """timm's own class with the weights in it."""
    plan: dict[str, Any] = {
        "img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 3, "num_classes": 5,
        "init_values": 0.1, "use_abs_pos_emb": False, "use_rel_pos_bias": True,
        "norm_layer": partial(torch.nn.LayerNorm, eps=1e-6),
    }  # fmt: skip
    model = Beit(**plan | changes)
    model.load_state_dict({name: torch.from_numpy(tensor) for name, tensor in weights.items()})
    return model.eval()

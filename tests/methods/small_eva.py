"""timm's ``Eva``, whose positions turn queries and keys, on DINOv3's plan in small; and what differs from it."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from timm.models.eva import Eva

ARGS: dict[str, Any] = {
    "family": "eva", "patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 3, "reg_tokens": 4, "init_values": 0.1,
    "qkv_bias": False, "pos_embed": False, "positions": "rotary", "rope_grid": "centered", "rope_temperature": 100.0,
    "rope_rotate_half": True, "global_pool": "avg", "fc_norm": False, "norm_eps": 1e-5,
}  # fmt: skip
MODEL = {"args": ARGS}
"""DINOv3's plan on a small scale."""

KINDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "dinov3": ({}, {}),
    "index": (
        {"rope_grid": "index", "rope_rotate_half": False, "ref_feat_shape": 3, "qkv": "biases_apart", "qkv_bias": True},
        {"rope_type": "cat", "rope_rotate_half": False, "ref_feat_shape": 3, "qkv_bias": True},
    ),
    "columns first": (
        {"rope_grid": "index", "rope_grid_offset": 1.0, "rope_grid_indexing": "xy", "qkv": "split", "qkv_bias": True},
        {"rope_type": "cat", "rope_grid_offset": 1.0, "rope_grid_indexing": "xy", "qkv_fused": False, "qkv_bias": True},
    ),
    "norms behind attention and MLP": (
        {"post_norm": True, "init_values": None},
        {"use_post_norm": True, "init_values": None},
    ),
    "mixed": (
        {"positions": "mixed", "rope_grid": "index", "rope_rotate_half": False, "rope_grid_indexing": "xy"},
        {"rope_type": "mixed", "rope_rotate_half": False, "rope_grid_indexing": "xy"},
    ),
}
"""Fields of ours and timm's arguments in which each differs from DINOv3."""


def of_timm(weights: dict[str, np.ndarray], **changes: Any) -> Eva:
    """timm's own class with the weights in it."""
    dinov3: dict[str, Any] = {
        "img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 3, "num_classes": 5,
        "qkv_bias": False, "init_values": 0.1, "rope_type": "dinov3", "rope_temperature": 100, "use_rot_pos_emb": True,
        "use_abs_pos_emb": False, "rope_rotate_half": True, "num_reg_tokens": 4, "use_fc_norm": False,
        "norm_layer": partial(torch.nn.LayerNorm, eps=1e-5),
    }  # fmt: skip
    model = Eva(**dinov3 | changes)
    model.load_state_dict({name: torch.from_numpy(tensor) for name, tensor in weights.items()})
    return model.eval()

"""transformers' DINOv3ViT: the names of its tensors, and what its configuration says.

It computes its rotary periods in float32, as timm does; Meta's own files have them in bfloat16.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from convert.files import renamed
from convert.layouts.renaming import Pair, layer, pair
from mlx_peft.core.border import Tensors
from mlx_peft.core.errors import UserError
from mlx_peft.vit.architecture import Architecture

BLOCK = "layer.{i}"
ATTENTION = f"{BLOCK}.attention"

TOWER = [
    *pair("cls_token", "embeddings.cls_token"),
    *pair("reg_token", "embeddings.register_tokens"),
    *layer("patch_embed.proj", "embeddings.patch_embeddings"),
    *layer("blocks.{i}.norm1", f"{BLOCK}.norm1"),
    *pair("blocks.{i}.attn.qkv.weight", *(f"{ATTENTION}.{name}_proj.weight" for name in "qkv")),
    *layer("blocks.{i}.attn.proj", f"{ATTENTION}.o_proj"),
    *pair("blocks.{i}.gamma_1", f"{BLOCK}.layer_scale1.lambda1"),
    *layer("blocks.{i}.norm2", f"{BLOCK}.norm2"),
    *layer("blocks.{i}.mlp.fc2", f"{BLOCK}.mlp.down_proj"),
    *pair("blocks.{i}.gamma_2", f"{BLOCK}.layer_scale2.lambda1"),
    *layer("norm", "norm"),
]
BIASES = {
    "fused": pair("blocks.{i}.attn.qkv.bias", *(f"{ATTENTION}.{name}_proj.bias" for name in "qkv")),
    "biases_apart": [
        *pair("blocks.{i}.attn.q_bias", f"{ATTENTION}.q_proj.bias"),
        *pair("blocks.{i}.attn.v_bias", f"{ATTENTION}.v_proj.bias"),
    ],
}
"""The biases of q, k and v: of all three, or of q and v alone."""

FIRST = {
    "mlp": layer("blocks.{i}.mlp.fc1", f"{BLOCK}.mlp.up_proj"),
    "swiglu": [
        *layer("blocks.{i}.mlp.fc1_g", f"{BLOCK}.mlp.gate_proj"),
        *layer("blocks.{i}.mlp.fc1_x", f"{BLOCK}.mlp.up_proj"),
    ],
}
"""The MLP's first layer."""

DEFAULTS: dict[str, Any] = {
    "hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1536, "layer_norm_eps": 1e-5,
    "rope_theta": 100.0, "query_bias": True, "key_bias": False, "value_bias": True, "proj_bias": True, "mlp_bias": True,
    "use_gated_mlp": False, "num_register_tokens": 0, "layerscale_value": 1.0,
}  # fmt: skip
"""Where they differ from other classes'."""


def pairs(architecture: Architecture) -> list[Pair]:
    """The names of a model that is one of these."""
    return [*TOWER, *BIASES.get(architecture.qkv, []), *FIRST.get(architecture.mlp_layer, [])]


def beside(architecture: Architecture) -> dict[str, tuple[int, ...]]:
    """What no classifier uses; where there are no registers, the class has a tensor of none."""
    none = {} if architecture.reg_tokens else {"embeddings.register_tokens": (1, 0, architecture.embed_dim)}
    return {"embeddings.mask_token": (1, 1, architecture.embed_dim), **none}


def on_disk(tensors: Tensors) -> Tensors:
    """In memory, version 5 has the blocks in a module of their own, ``model``."""
    return renamed(tensors, lambda name: re.sub(r"(^|\.)model\.layer\.", r"\1layer.", name))


def fields(values: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """What a configuration says beside the sizes. Raises UserError for biases that no model here has."""
    query, key, value = (values[f"{name}_bias"] for name in ("query", "key", "value"))
    if query is not value or (key and not query):
        raise UserError(
            f"{path}: query_bias {query}, key_bias {key}, value_bias {value}: q and v should both have a bias or none, "
            "and k only where they have"
        )
    if values["proj_bias"] is not values["mlp_bias"]:
        raise UserError(f"{path}: proj_bias and mlp_bias: both should be true, or both false")
    return {
        "family": "eva",
        "qkv": "fused" if key else "biases_apart",
        "qkv_bias": query,
        "proj_bias": values["proj_bias"],
        "mlp_layer": "swiglu" if values["use_gated_mlp"] else "mlp",
        "init_values": values["layerscale_value"] or DEFAULTS["layerscale_value"],
        "pos_embed": False,
        "positions": "rotary",
        "rope_grid": "centered",
        "rope_temperature": values["rope_theta"],
        "rope_rotate_half": True,
    }


def written(architecture: Architecture) -> dict[str, Any]:
    """The same of an architecture."""
    return {
        "rope_theta": architecture.rope_temperature,
        "query_bias": architecture.qkv_bias,
        "key_bias": architecture.qkv_bias and architecture.qkv == "fused",
        "value_bias": architecture.qkv_bias,
        "proj_bias": architecture.proj_bias,
        "mlp_bias": architecture.proj_bias,
        "use_gated_mlp": architecture.mlp_layer == "swiglu",
        "num_register_tokens": architecture.reg_tokens,
        "layerscale_value": architecture.init_values or DEFAULTS["layerscale_value"],
    }

"""transformers' BEiT and Data2VecVision: the names of their tensors, and what their configuration says."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from convert.layouts.renaming import layer, pair
from mlx_peft.core.errors import UserError
from mlx_peft.vit.architecture import Architecture
from mlx_peft.vit.relative import TABLE

BLOCK = "encoder.layer.{i}"
ATTENTION = f"{BLOCK}.attention.attention"
SHARED = "encoder.relative_position_bias"

PAIRS = [
    *pair("cls_token", "embeddings.cls_token"),
    *pair("pos_embed", "embeddings.position_embeddings"),
    *layer("patch_embed.proj", "embeddings.patch_embeddings.projection"),
    *pair(f"rel_pos_bias.{TABLE}", f"{SHARED}.{TABLE}"),
    *layer("blocks.{i}.norm1", f"{BLOCK}.layernorm_before"),
    *pair("blocks.{i}.attn.qkv.weight", *(f"{ATTENTION}.{name}.weight" for name in ("query", "key", "value"))),
    *pair("blocks.{i}.attn.q_bias", f"{ATTENTION}.query.bias"),
    *pair("blocks.{i}.attn.v_bias", f"{ATTENTION}.value.bias"),
    *pair("blocks.{i}.attn." + TABLE, f"{ATTENTION}.relative_position_bias.{TABLE}"),
    *layer("blocks.{i}.attn.proj", f"{BLOCK}.attention.output.dense"),
    *pair("blocks.{i}.gamma_1", f"{BLOCK}.lambda_1"),
    *layer("blocks.{i}.norm2", f"{BLOCK}.layernorm_after"),
    *layer("blocks.{i}.mlp.fc1", f"{BLOCK}.intermediate.dense"),
    *layer("blocks.{i}.mlp.fc2", f"{BLOCK}.output.dense"),
    *pair("blocks.{i}.gamma_2", f"{BLOCK}.lambda_2"),
    *layer("norm", "layernorm"),
    *layer("fc_norm", "pooler.layernorm"),
]

DEFAULTS: dict[str, Any] = {
    "use_absolute_position_embeddings": False,
    "use_relative_position_bias": False,
    "use_shared_relative_position_bias": False,
    "use_mean_pooling": True,
    "layer_scale_init_value": 0.1,
}

POSITIONS = {(False, False): "learnt", (True, False): "relative", (False, True): "relative_shared"}
"""``use_relative_position_bias`` and ``use_shared_relative_position_bias``, and ``positions``."""


def fields(values: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """What a configuration says beside the sizes. Raises UserError where it has tables both of blocks and for all."""
    of_each, shared = values["use_relative_position_bias"], values["use_shared_relative_position_bias"]
    if of_each and shared:
        raise UserError(
            f"{path}: use_relative_position_bias and use_shared_relative_position_bias: only one of them is supported"
        )
    return {
        "family": "beit",
        "qkv": "biases_apart",
        "pos_embed": values["use_absolute_position_embeddings"],
        "positions": POSITIONS[of_each, shared],
        "global_pool": "avg" if values["use_mean_pooling"] else "token",
        "init_values": values["layer_scale_init_value"] or None,
    }


def written(architecture: Architecture) -> dict[str, Any]:
    """The same of an architecture; of one that has no such positions, what is nearest."""
    of_each, shared = {kind: pair for pair, kind in POSITIONS.items()}.get(architecture.positions, (False, False))
    return {
        "use_absolute_position_embeddings": architecture.pos_embed,
        "use_relative_position_bias": of_each,
        "use_shared_relative_position_bias": shared,
        "use_mean_pooling": architecture.global_pool == "avg",
        "layer_scale_init_value": architecture.init_values or 0.0,
    }

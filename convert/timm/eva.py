"""What timm's ``Eva`` is told, in the words of its constructor, and the fields of ``Architecture`` that say the same.

The classes of its norms cannot be said in ``config.json``, and are no part of it.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from convert.timm import words as common
from mlx_peft.vit.architecture import Architecture

SAME = (
    *("img_size", "patch_size", "embed_dim", "depth", "num_heads", "qkv_bias", "qk_norm", "init_values", "class_token"),
    *("no_embed_class", "global_pool", "rope_grid_offset", "rope_grid_indexing", "rope_temperature"),
    *("rope_rotate_half", "ref_feat_shape", "attn_pool_num_heads", "attn_pool_mlp_ratio"),
)
NAMES = dict(zip(SAME, SAME, strict=True)) | {
    "num_reg_tokens": "reg_tokens",
    "scale_mlp": "scale_mlp_norm",
    "scale_attn_inner": "scale_attn_norm",
    "use_abs_pos_emb": "pos_embed",
    "use_post_norm": "post_norm",
    "use_pre_transformer_norm": "pre_norm",
    "use_fc_norm": "fc_norm",
}
"""Words that mean a field as they are, some of them under another name: theirs, ours."""

QKV = {("eva", True): "biases_apart", ("eva", False): "split", ("rope", True): "fused"}
"""``attn_type`` and ``qkv_fused``, and how q, k and v are stored then."""

ROPE = {"cat": ("rotary", "index"), "dinov3": ("rotary", "centered"), "mixed": ("mixed", "index")}
"""``rope_type``, and ``positions`` with ``rope_grid``."""


class Words(common.Words):
    """The arguments of ``Eva``."""

    class_token: bool
    num_reg_tokens: int
    no_embed_class: bool
    qkv_fused: bool
    qk_norm: bool
    attn_type: Literal["eva", "rope"]
    scale_attn_inner: bool
    swiglu_align_to: Annotated[int, Field(ge=0, le=65536)]
    use_rot_pos_emb: bool
    rope_type: Literal["cat", "dinov3", "mixed"]
    rope_grid_offset: float
    rope_grid_indexing: Literal["ij", "xy"]
    rope_temperature: float
    rope_rotate_half: bool
    ref_feat_shape: int | None
    use_post_norm: bool
    use_pre_transformer_norm: bool
    use_post_transformer_norm: bool | None
    attn_pool_num_heads: int | None
    attn_pool_mlp_ratio: float | None
    num_kv_heads: None = None
    attn_only_layer_scale: Literal[False] = False


def fields(said: Words) -> dict[str, Any]:
    """All that was said, as fields.

    Raises:
        ValueError: with the words, where it is no model that is here.
    """
    qkv = QKV.get((said.attn_type, said.qkv_fused))
    if qkv is None:
        raise ValueError(f"attn_type {said.attn_type!r}, qkv_fused {said.qkv_fused}")
    final, after = said.use_post_transformer_norm, said.use_fc_norm
    if after is None:
        after = said.global_pool == "avg"
    if final and after:
        raise ValueError("both use_post_transformer_norm and a norm after pooling")
    return {
        **common.as_fields(said, NAMES),
        "init_values": None if said.use_post_norm else said.init_values,  # timm's blocks have no layer scale then
        **_positions(said),
        **_mlp(said),
        "family": "eva",
        "qkv": qkv,
        "final_norm": after or final is None or final,
        "pool_include_prefix": said.global_pool == "map",
    }


def _positions(said: Words) -> dict[str, Any]:
    """The fields of rotary positions: what timm does not hand to a kind of them is at its default, whatever is said."""
    if not said.use_rot_pos_emb:
        return {"positions": "learnt", "rope_grid": "index"}
    if said.rope_type == "mixed" and said.rope_rotate_half:
        raise ValueError("rope_type 'mixed' and rope_rotate_half")  # timm refuses it too
    positions, grid = ROPE[said.rope_type]
    return {
        "positions": positions,
        "rope_grid": grid,
        "ref_feat_shape": said.ref_feat_shape if said.rope_type == "cat" else None,
        "rope_grid_offset": 0.0 if said.rope_type == "mixed" else said.rope_grid_offset,
    }


def _mlp(said: Words) -> dict[str, Any]:
    """The fields of the MLP: SwiGLU has its halves apart where they are normalised or aligned."""
    dim, ratio, align = said.embed_dim, said.mlp_ratio, said.swiglu_align_to
    hidden = int(dim * ratio)
    if not said.swiglu_mlp:
        return {"mlp_layer": "mlp", "act_layer": "gelu", "mlp_ratio": ratio}
    if said.scale_mlp or align:
        hidden += -hidden % align if align else 0
        kind = "swiglu"
    else:
        kind, hidden, ratio = "swiglu_packed", 2 * hidden, 2 * ratio
    return {"mlp_layer": kind, "act_layer": "silu", "mlp_ratio": ratio if int(dim * ratio) == hidden else hidden / dim}


def words(architecture: Architecture) -> dict[str, Any]:
    """What ``Eva`` has to be told to be such a model, every word; where it has none, the nearest."""
    kind, fused = next(pair for pair, qkv in QKV.items() if qkv == architecture.qkv)
    ropes = {of: rope for rope, of in ROPE.items()}
    packed, gated = architecture.mlp_layer == "swiglu_packed", architecture.mlp_layer != "mlp"
    return {
        **common.as_words(architecture, NAMES),
        "attn_type": kind,
        "qkv_fused": fused,
        "use_rot_pos_emb": architecture.positions != "learnt",
        "rope_type": ropes.get((architecture.positions, architecture.rope_grid), "cat"),
        "swiglu_mlp": gated,
        "swiglu_align_to": int(architecture.mlp_layer == "swiglu"),
        "mlp_ratio": architecture.mlp_ratio / 2 if packed else architecture.mlp_ratio,
        "use_post_transformer_norm": None if architecture.final_norm else False,
        "use_fc_norm": architecture.fc_norm if architecture.final_norm else False,
    }

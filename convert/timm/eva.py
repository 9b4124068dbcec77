"""What timm's ``Eva`` is told, in the words of its constructor, and the fields of ``Architecture`` that say the same.

The classes of its norms cannot be said in ``config.json``, and are no part of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mlx_peft.vit.architecture import Architecture

SAME = (
    *("img_size", "patch_size", "embed_dim", "depth", "num_heads", "qkv_bias", "qk_norm", "init_values", "class_token"),
    *("no_embed_class", "global_pool", "rope_grid_offset", "rope_grid_indexing", "rope_temperature"),
    *("rope_rotate_half", "attn_pool_num_heads", "attn_pool_mlp_ratio"),
)
"""Words that mean here what they mean there."""

RENAMED = {
    "num_reg_tokens": "reg_tokens",
    "scale_mlp": "scale_mlp_norm",
    "scale_attn_inner": "scale_attn_norm",
    "use_abs_pos_emb": "pos_embed",
    "use_post_norm": "post_norm",
    "use_pre_transformer_norm": "pre_norm",
    "use_fc_norm": "fc_norm",
}
"""The same under another name: theirs, ours."""

QKV = {("eva", True): "biases_apart", ("eva", False): "split", ("rope", True): "fused"}
"""``attn_type`` and ``qkv_fused``, and how q, k and v are stored then."""

ROPE = {"cat": ("rotary", "index"), "dinov3": ("rotary", "centered"), "mixed": ("mixed", "index")}
"""``rope_type``, and ``positions`` with ``rope_grid``."""


def fields(said: Mapping[str, Any]) -> dict[str, Any]:
    """All that was said, every word of ``words``, as fields.

    Raises:
        ValueError: with the words, where it is no model that is here.
    """
    found = {name: said[name] for name in SAME} | {ours: said[theirs] for theirs, ours in RENAMED.items()}
    qkv = QKV.get((said["attn_type"], said["qkv_fused"]))
    rope = ROPE.get(said["rope_type"]) if said["use_rot_pos_emb"] else ("learnt", "index")
    if qkv is None or rope is None:
        unknown = ("attn_type", "qkv_fused") if qkv is None else ("rope_type",)
        raise ValueError(", ".join(f"{word} {said[word]!r}" for word in unknown))
    positions, grid = rope
    final = said["use_post_transformer_norm"]
    after = said["global_pool"] == "avg" if said["use_fc_norm"] is None else said["use_fc_norm"]
    if final and after:
        raise ValueError("both use_post_transformer_norm and a norm after pooling")
    reference = said["ref_feat_shape"]
    if said["use_post_norm"]:  # timm's blocks have no layer scale then, whatever is said
        found["init_values"] = None
    return {
        **found,
        **_mlp(said),
        "family": "eva",
        "qkv": qkv,
        "positions": positions,
        "rope_grid": grid,
        "ref_feat_shape": reference[0] if isinstance(reference, list | tuple) else reference,
        "final_norm": after or final is None or final,
        "pool_include_prefix": said["global_pool"] == "map",
    }


def _mlp(said: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of the MLP: SwiGLU has its halves apart where they are normalised or aligned."""
    dim, ratio, align = said["embed_dim"], said["mlp_ratio"], said["swiglu_align_to"]
    hidden = int(dim * ratio)
    if not said["swiglu_mlp"]:
        return {"mlp_layer": "mlp", "act_layer": "gelu", "mlp_ratio": ratio}
    if said["scale_mlp"] or align:
        hidden += -hidden % align if align else 0
        kind = "swiglu"
    else:
        kind, hidden, ratio = "swiglu_packed", 2 * hidden, 2 * ratio
    return {"mlp_layer": kind, "act_layer": "silu", "mlp_ratio": ratio if int(dim * ratio) == hidden else hidden / dim}


def words(architecture: Architecture) -> dict[str, Any]:
    """What ``Eva`` has to be told to be such a model, every word; where it has none, the nearest."""
    said = {name: getattr(architecture, name) for name in SAME}
    said |= {theirs: getattr(architecture, ours) for theirs, ours in RENAMED.items()}
    kind, fused = next(pair for pair, qkv in QKV.items() if qkv == architecture.qkv)
    ropes = {of: rope for rope, of in ROPE.items()}
    packed, gated = architecture.mlp_layer == "swiglu_packed", architecture.mlp_layer != "mlp"
    return {
        **said,
        "attn_type": kind,
        "qkv_fused": fused,
        "use_rot_pos_emb": architecture.positions != "learnt",
        "rope_type": ropes.get((architecture.positions, architecture.rope_grid), "cat"),
        "ref_feat_shape": architecture.ref_feat_shape,
        "swiglu_mlp": gated,
        "swiglu_align_to": int(architecture.mlp_layer == "swiglu"),
        "mlp_ratio": architecture.mlp_ratio / 2 if packed else architecture.mlp_ratio,
        "use_post_transformer_norm": None if architecture.final_norm else False,
        "use_fc_norm": architecture.fc_norm if architecture.final_norm else False,
    }

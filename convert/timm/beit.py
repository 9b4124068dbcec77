"""What timm's ``Beit`` is told, in its constructor's words, and the fields of ``Architecture`` that say the same."""

from __future__ import annotations

from typing import Any

from convert.timm import words as common
from mlx_peft.vit.architecture import Architecture

SAME = (
    *("img_size", "patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio", "qkv_bias", "init_values"),
    "global_pool",
)
NAMES = dict(zip(SAME, SAME, strict=True)) | {
    "scale_mlp": "scale_mlp_norm",
    "use_abs_pos_emb": "pos_embed",
    "use_fc_norm": "fc_norm",
}
"""Words that mean a field as they are, some of them under another name: theirs, ours."""

POSITIONS = {(False, False): "learnt", (True, False): "relative", (False, True): "relative_shared"}
"""``use_rel_pos_bias`` and ``use_shared_rel_pos_bias``, and ``positions``."""


class Words(common.Words):
    """The arguments of ``Beit``."""

    use_rel_pos_bias: bool
    use_shared_rel_pos_bias: bool


def fields(said: Words) -> dict[str, Any]:
    """All that was said, as fields.

    Raises:
        ValueError: with the words, where it is no model that is here.
    """
    positions = POSITIONS.get((said.use_rel_pos_bias, said.use_shared_rel_pos_bias))
    if positions is None:
        raise ValueError("both use_rel_pos_bias and use_shared_rel_pos_bias")
    mlp = {"mlp_layer": "swiglu", "act_layer": "silu"} if said.swiglu_mlp else {"mlp_layer": "mlp"}
    return {**common.as_fields(said, NAMES), **mlp, "family": "beit", "qkv": "biases_apart", "positions": positions}


def words(architecture: Architecture) -> dict[str, Any]:
    """What ``Beit`` has to be told to be such a model, every word; where it has none, the nearest."""
    of_each, shared = next(
        (pair for pair, kind in POSITIONS.items() if kind == architecture.positions), (False, False)
    )  # fmt: skip
    return {
        **common.as_words(architecture, NAMES),
        "use_rel_pos_bias": of_each,
        "use_shared_rel_pos_bias": shared,
        "swiglu_mlp": architecture.mlp_layer == "swiglu",
    }

"""What EVA's authors call otherwise than timm, and what their masked training leaves beside the model.

The names are those of ``asuka/modeling_finetune.py`` and ``rei`` of github.com/baaivision/EVA, as timm's own
``checkpoint_filter_fn`` takes them.
"""

from __future__ import annotations

import re

from convert.files import renamed
from mlx_peft.core.border import Tensors

PARTS = {
    r"\.mlp\.ffn_ln\.": ".mlp.norm.",
    r"\.attn\.inner_attn_ln\.": ".attn.norm.",
    r"\.mlp\.w12\.": ".mlp.fc1.",
    r"\.mlp\.w1\.": ".mlp.fc1_g.",
    r"\.mlp\.w2\.": ".mlp.fc1_x.",
    r"\.mlp\.w3\.": ".mlp.fc2.",
}
"""Parts of their names, and of timm's."""

APART = {r"\.attn\.([qv])_bias$": r".attn.\1_proj.bias"}
"""The same where q, k and v are three layers."""

FOUND_AGAIN = re.compile(r"(.*\.)?rope\.(?!freqs$)")
"""Tables of rotary positions, which are computed."""

MASKED, OF_MASKED = "mask_token", ("lm_head.",)
"""What a checkpoint of masked training has, and what else of it is no part of the model."""

OF_OTHERS = {"storage_tokens", "reg_token", "fc_norm.weight"}
"""One of these is beside a mask token where the last norm is the model's own: DINOv3's, under its authors' names and
timm's, and a model that was tuned afterwards."""


def from_eva(tensors: Tensors) -> tuple[Tensors, tuple[str, ...]]:
    """The tensors under timm's names, and what was left out or renamed, in words.

    The last norm of masked training becomes the norm behind the pooling, as timm has it: the nearest to begin with.

    Raises:
        UserError: where two tensors would have one name.
    """
    found = {name: tensor for name, tensor in tensors.items() if not FOUND_AGAIN.match(name)}
    notes: tuple[str, ...] = ()
    parts = PARTS | (APART if "blocks.0.attn.q_proj.weight" in found else {})
    if MASKED in found and not OF_OTHERS & found.keys():
        found = {name: t for name, t in found.items() if name != MASKED and not name.startswith(OF_MASKED)}
        parts |= {r"^norm\.": "fc_norm."}
        notes = ("mask_token, lm_head: of masked training, left out; its last norm is taken for fc_norm",)

    def ours(name: str) -> str:
        for theirs, own in parts.items():
            name = re.sub(theirs, own, name)
        return name

    return renamed(found, ours), notes

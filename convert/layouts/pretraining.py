"""What self-supervised training leaves in a checkpoint beside the model, and in which shape it leaves the blocks.

The names are those of the authors' own code: ``models_mae.py`` of github.com/facebookresearch/mae, ``dinov2/train/
ssl_meta_arch.py`` and ``dinov2/models/vision_transformer.py`` of facebookresearch/dinov2, ``models/head.py`` of
bytedance/ibot.
"""

from __future__ import annotations

import re

from convert.files import listed, renamed
from mlx_peft.core.border import Tensors

LEFT_OUT = {
    r"(decoder_(?:embed|pos_embed|blocks|norm|pred))(?:\..*)?": "the decoder of MAE",
    r"((?:dino|ibot)_head)\..*": "the projection heads of DINOv2's training",
    r"(head\.(?:mlp|last_layer)2?)\..*": "the projection head of DINO's training",
    r"(head|predictor)\.\d+\..*": "a projection head of MoCo v3's training",
    r"(lm_head)\..*": "the head of BEiT's training",
    r"(?:.*\.)?(relative_position_index)": "tables of indices, which are computed",
    r"(mask_token|masked_embed)": "what masked patches are replaced with in training",
}
"""Tensors of these names are used by no classifier; what they are, by what is matched first."""

CHUNKED = re.compile(r"blocks\.(\d+)\.(\d+)\.")
"""DINOv2 trains its blocks in chunks; the second number is the block's own, counted over all chunks."""


def without_pretraining(tensors: Tensors) -> tuple[Tensors, tuple[str, ...]]:
    """The tensors of the model alone, its blocks in one list; and what was left out or renamed, in words.

    Raises:
        UserError: where two blocks would have one name.
    """
    notes = []
    for pattern, what in LEFT_OUT.items():
        found = {name: match[1] for name in tensors if (match := re.fullmatch(pattern, name))}
        if found:
            tensors = {name: tensor for name, tensor in tensors.items() if name not in found}
            notes.append(f"{listed(sorted(set(found.values())))}: {what}, left out")
    if any(CHUNKED.match(name) for name in tensors):
        tensors = renamed(tensors, lambda name: CHUNKED.sub(r"blocks.\2.", name, count=1))
        notes.append("blocks: kept in chunks (blocks.CHUNK.BLOCK), which are one list here")
    return tensors, tuple(notes)

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
    ("decoder_embed.", "decoder_pos_embed", "decoder_blocks.", "decoder_norm.", "decoder_pred."): "the decoder of MAE",
    ("dino_head.", "ibot_head."): "the projection heads of DINOv2's training",
    ("head.mlp.", "head.last_layer.", "head.mlp2.", "head.last_layer2."): "the projection head of DINO's training",
    ("mask_token", "masked_embed"): "what masked patches are replaced with in training",
}
"""Tensors whose names begin so are used by no classifier; what they are."""

CHUNKED = re.compile(r"blocks\.(\d+)\.(\d+)\.")
"""DINOv2 trains its blocks in chunks; the second number is the block's own, counted over all chunks."""


def without_pretraining(tensors: Tensors) -> tuple[Tensors, tuple[str, ...]]:
    """The tensors of the model alone, its blocks in one list; and what was left out or renamed, in words.

    Raises:
        UserError: where two blocks would have one name.
    """
    notes = []
    for beginnings, what in LEFT_OUT.items():
        found = [name for name in tensors if name.startswith(beginnings)]
        if found:
            tensors = {name: tensor for name, tensor in tensors.items() if name not in found}
            stems = sorted({next(one for one in beginnings if name.startswith(one)).rstrip(".") for name in found})
            notes.append(f"{listed(stems)}: {what}, left out")
    if any(CHUNKED.match(name) for name in tensors):
        tensors = renamed(tensors, lambda name: CHUNKED.sub(r"blocks.\2.", name, count=1))
        notes.append("blocks: kept in chunks (blocks.CHUNK.BLOCK), which are one list here")
    return tensors, tuple(notes)

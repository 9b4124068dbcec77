"""mlx-image's ViTs, as the ``mlx-vision`` repositories have them: torchvision's structure under names of MLX."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from convert.layouts.layout import Asked, Layout, Reading, contiguous, heads_of, inferred
from convert.layouts.renaming import layer, pair, to_timm
from mlx_peft.core.border import Tensors
from mlx_peft.core.errors import UserError
from mlx_peft.vit.architecture import Architecture, Preprocessing

THEIRS = "encoder.layers.{i}"


def _channels_first(tensor: np.ndarray) -> np.ndarray:
    """``(out, height, width, in)`` to ``(out, in, height, width)``."""
    if tensor.ndim != 4:
        raise ValueError("it should have 4 dimensions")
    return contiguous(tensor.transpose(0, 3, 1, 2))


PAIRS = [
    *pair("cls_token", "class_token"),
    *pair("pos_embed", "encoder.pos_embedding"),
    *pair("patch_embed.proj.weight", "conv_proj.weight", to_ours=_channels_first),
    *pair("patch_embed.proj.bias", "conv_proj.bias"),
    *layer("blocks.{i}.norm1", f"{THEIRS}.ln_1"),
    *layer("blocks.{i}.attn.qkv", *(f"{THEIRS}.self_attention.{name}_proj" for name in ("query", "key", "value"))),
    *layer("blocks.{i}.attn.proj", f"{THEIRS}.self_attention.out_proj"),
    *layer("blocks.{i}.norm2", f"{THEIRS}.ln_2"),
    *layer("blocks.{i}.mlp.fc1", f"{THEIRS}.mlp.linear_1"),
    *layer("blocks.{i}.mlp.fc2", f"{THEIRS}.mlp.linear_2"),
    *layer("norm", "encoder.ln"),
    *layer("head", "heads.layers.0"),
]

HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16}
"""The number of attention heads by width, of the architectures that mlx-image has."""

DINOV2_EPS = 1e-5
"""mlx-image builds its DINOv2 models, all of 518 pixels but the huge one, with MLX's default; others have 1e-6."""

PREPROCESSING = Preprocessing(
    mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), interpolation="bicubic", crop_pct=1.0
)  # fmt: skip


def read(tensors: Tensors, path: Path, asked: Asked) -> Reading:
    """mlx-image's parameters as timm's; see ``Layout``."""
    ours = to_timm(tensors, PAIRS, str(path))
    if "patch_embed.proj.weight" not in ours:
        raise UserError(f"{path} lacks the tensor conv_proj.weight")
    dim = ours["patch_embed.proj.weight"].shape[0]
    architecture = inferred(ours, heads_of(dim, asked, HEADS, path), path)
    eps = DINOV2_EPS if _is_dinov2(architecture) else architecture.norm_eps
    return Reading(ours, architecture.model_copy(update={"norm_eps": eps}), PREPROCESSING)


def _is_dinov2(architecture: Architecture) -> bool:
    return (architecture.patch_size, architecture.img_size) == (14, 518) and architecture.embed_dim < 1280


LAYOUT = Layout("mlx-image", "mlx-image's VisionTransformer", "encoder.layers.0.ln_1.weight", read)

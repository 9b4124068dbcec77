"""torchvision's ``VisionTransformer``: ``vit_b_16``, ``b_32``, ``l_16``, ``l_32``, ``h_14``, SWAG's weights too."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from convert.layouts.layout import Asked, Layout, Reading, differing, heads_of, inferred
from convert.layouts.renaming import from_timm, layer, pair, to_timm
from mlx_peft.core.border import Tensors
from mlx_peft.core.errors import UserError, suggest
from mlx_peft.vit.architecture import Architecture, Preprocessing

THEIRS = "encoder.layers.encoder_layer_{i}"
PAIRS = [
    *pair("cls_token", "class_token"),
    *pair("pos_embed", "encoder.pos_embedding"),
    *layer("patch_embed.proj", "conv_proj"),
    *layer("blocks.{i}.norm1", f"{THEIRS}.ln_1"),
    *pair("blocks.{i}.attn.qkv.weight", f"{THEIRS}.self_attention.in_proj_weight"),
    *pair("blocks.{i}.attn.qkv.bias", f"{THEIRS}.self_attention.in_proj_bias"),
    *layer("blocks.{i}.attn.proj", f"{THEIRS}.self_attention.out_proj"),
    *layer("blocks.{i}.norm2", f"{THEIRS}.ln_2"),
    *layer("blocks.{i}.mlp.fc1", f"{THEIRS}.mlp.0"),
    *layer("blocks.{i}.mlp.fc2", f"{THEIRS}.mlp.3"),
    *layer("norm", "encoder.ln"),
    *layer("head", "heads.head"),
]
ATTENTION = {
    "blocks.{i}.attn.qkv": f"{THEIRS}.self_attention",
    "blocks.{i}.attn.proj": f"{THEIRS}.self_attention.base_layer.out_proj",
}
"""The two layers that are one module here, and PEFT's names of their adapters: never one without the other."""

OLD = {"mlp.linear_1": "mlp.0", "mlp.linear_2": "mlp.3"}
"""The published weights were saved under these names; torchvision renames them on loading."""

HEADS = {768: 12, 1024: 16, 1280: 16}
"""The number of attention heads by width, of the architectures that torchvision has."""

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


@dataclass(frozen=True)
class Weights:
    """One set of published weights: the sides of crop and resize, and how images are resized."""

    crop: int
    resize: int
    interpolation: str

    @property
    def preprocessing(self) -> Preprocessing:
        return Preprocessing.model_validate({
            **IMAGENET, "interpolation": self.interpolation, "crop_pct": self.crop / self.resize,
        })  # fmt: skip


WEIGHTS: dict[str, dict[str, Weights]] = {
    "vit_b_16": {
        "IMAGENET1K_V1": Weights(224, 256, "bilinear"),
        "IMAGENET1K_SWAG_E2E_V1": Weights(384, 384, "bicubic"),
        "IMAGENET1K_SWAG_LINEAR_V1": Weights(224, 224, "bicubic"),
    },
    "vit_b_32": {"IMAGENET1K_V1": Weights(224, 256, "bilinear")},
    "vit_l_16": {
        "IMAGENET1K_V1": Weights(224, 242, "bilinear"),
        "IMAGENET1K_SWAG_E2E_V1": Weights(512, 512, "bicubic"),
        "IMAGENET1K_SWAG_LINEAR_V1": Weights(224, 224, "bicubic"),
    },
    "vit_l_32": {"IMAGENET1K_V1": Weights(224, 256, "bilinear")},
    "vit_h_14": {
        "IMAGENET1K_SWAG_E2E_V1": Weights(518, 518, "bicubic"),
        "IMAGENET1K_SWAG_LINEAR_V1": Weights(224, 224, "bicubic"),
    },
}
"""The weights that torchvision publishes, by its names and tags."""

SIZES = {
    (768, 16): "vit_b_16",
    (768, 32): "vit_b_32",
    (1024, 16): "vit_l_16",
    (1024, 32): "vit_l_32",
    (1280, 14): "vit_h_14",
}
"""torchvision's names of architectures, by width and patch size."""


def read(tensors: Tensors, path: Path, asked: Asked) -> Reading:
    """A state dictionary as timm's; see ``Layout``. Of two sets of weights with the same shapes, one must be named."""
    named = {re.sub(r"mlp\.linear_[12]", lambda match: OLD[match[0]], name): t for name, t in tensors.items()}
    ours = to_timm(named, PAIRS, str(path))
    dim = ours["patch_embed.proj.weight"].shape[0]
    architecture = inferred(ours, heads_of(dim, asked, HEADS, path), path)
    return Reading(ours, architecture, _preprocessing(architecture, asked.name, path))


def _preprocessing(architecture: Architecture, name: str | None, path: Path) -> Preprocessing | None:
    """That of the one set of weights that fits, or that is named; None for an architecture that torchvision lacks."""
    model, _, tag = (name or "").partition(".")
    if model in WEIGHTS:
        if tag and tag not in WEIGHTS[model]:
            raise UserError(
                f"{model} has no weights {tag!r} in torchvision{suggest(tag, WEIGHTS[model])} "
                f"({', '.join(WEIGHTS[model])})",
                arguments=("model",),
            )
        fitting = {key: one for key, one in WEIGHTS[model].items() if tag in ("", key)}
    else:
        model = SIZES.get((architecture.embed_dim, architecture.patch_size), "")
        every = WEIGHTS.get(model, {})
        fitting = {key: one for key, one in every.items() if one.crop == architecture.img_size}
    if len({one.preprocessing for one in fitting.values()}) > 1:
        choices = " or ".join(f"{model}.{key}" for key in fitting)
        raise UserError(
            f"{path}: torchvision publishes several weights of these shapes, whose images are prepared differently: "
            f"name the model {choices}",
            arguments=("model",),
        )
    return next((one.preprocessing for one in fitting.values()), None)


def must_fit(architecture: Architecture) -> None:
    """Raises UserError for a model that torchvision's class is not: what differs is listed."""
    free = {"img_size", "patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio"}
    if odd := differing(architecture, Architecture(), free):
        raise UserError(f"torchvision's VisionTransformer has no {', '.join(odd)}")


def pack(architecture: Architecture, tensors: Tensors) -> Tensors:
    """timm's tensors as ``torchvision.models.VisionTransformer`` has them.

    Raises:
        UserError: as ``must_fit``.
    """
    must_fit(architecture)
    return from_timm(tensors, PAIRS)


LAYOUT = Layout("torchvision", "torchvision's VisionTransformer", "encoder.layers.encoder_layer_0.ln_1.weight", read)

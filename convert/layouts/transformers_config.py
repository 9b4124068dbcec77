"""transformers' ``config.json``: which of its classes a model is, and what architecture that stands for; and back."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from convert.layouts import transformers_beit as beit
from convert.layouts import transformers_dinov3 as dinov3
from convert.layouts import transformers_names as names
from convert.layouts.layout import ratio
from convert.layouts.transformers_classes import VARIANTS, WHOLE, Variant
from mlx_peft.core.border import Tensors
from mlx_peft.core.errors import UserError, suggest
from mlx_peft.vit.architecture import Architecture
from mlx_peft.vit.registry import altered

ACTIVATIONS = {"gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh", "quick_gelu": "quick_gelu", "silu": "silu"}
"""Activations by transformers' ``hidden_act``, and our names of them."""

SIZES = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "num_channels": 3, "image_size": 224}
BERT = {**SIZES, "patch_size": 16, "intermediate_size": 3072, "hidden_act": "gelu", "layer_norm_eps": 1e-12}
META = {**SIZES, "patch_size": 14, "mlp_ratio": 4, "hidden_act": "gelu", "layer_norm_eps": 1e-6}
DEFAULTS: dict[str, dict[str, Any]] = {
    "vit": {**BERT, "qkv_bias": True},
    "deit": {**BERT, "qkv_bias": True},
    "dinov2": {**META, "qkv_bias": True, "use_swiglu_ffn": False},
    "dinov2_with_registers": {
        **META, "patch_size": 16, "qkv_bias": True, "use_swiglu_ffn": False, "num_register_tokens": 4,
    },
    "clip_vision_model": {
        **BERT, "patch_size": 32, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "projection_dim": 512,
    },
    "siglip_vision_model": {**BERT, "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6},
    "dinov3_vit": {**BERT, **dinov3.DEFAULTS},
    "beit": {**BERT, **beit.DEFAULTS},
    "data2vec-vision": {**BERT, **beit.DEFAULTS},
}  # fmt: skip
"""A model type's configuration means this where it does not say: files of older versions leave defaults out."""

NUMBERS = (
    "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "num_register_tokens", "mlp_ratio",
)  # fmt: skip
NONE_TOO = ("num_register_tokens",)
"""Numbers that may be 0."""

LARGEST = 2**20
"""No number in a configuration may be so large: a shape is computed from it before a tensor is looked at."""

TYPES: dict[str, Any] = {
    **dict.fromkeys(NUMBERS, int), "num_channels": int, "mlp_ratio": (int, float), "layer_norm_eps": (int, float),
    "hidden_act": str, "qkv_bias": bool, "use_swiglu_ffn": bool,
    **{key: bool if isinstance(value, bool) else (int, float)
       for key, value in {**beit.DEFAULTS, **dinov3.DEFAULTS}.items() if key not in NUMBERS},
}  # fmt: skip
"""The types that the values of a configuration may have."""


def class_of(config: Mapping[str, Any], tensors: Tensors, path: Path) -> str:
    """The model class that a configuration names; where it names none, the one whose head is there."""
    kind = str(config.get("model_type"))
    kind = WHOLE.get(kind, kind)
    fitting = [name for name, variant in VARIANTS.items() if variant.kind == kind]
    if not fitting:
        known = sorted({*DEFAULTS, *WHOLE})
        hint = suggest(kind, known) or f" (known: {', '.join(known)})"
        raise UserError(f"{path}: model_type: {kind!r} is not a supported ViT{hint}")
    named = config.get("architectures")
    if isinstance(named, list) and named:
        if named[0] not in fitting:
            raise UserError(
                f"{path}: architectures: {named[0]!r} is not supported with model_type {config['model_type']!r} "
                f"(known: {', '.join(fitting)})"
            )
        return str(named[0])
    for name in fitting:
        head = VARIANTS[name].head
        if head and all(one.theirs[0] in tensors for one in head):
            return name
    return next(name for name in fitting if not VARIANTS[name].head)


def architecture_of(config: Mapping[str, Any], variant: Variant, path: Path) -> Architecture:
    """The architecture that a configuration stands for, for one of the model classes. Raises UserError."""
    vision = config.get("vision_config", {}) if config.get("model_type") in WHOLE else config
    if not isinstance(vision, dict):
        raise UserError(f"{path}: vision_config is no object")
    values = DEFAULTS[variant.kind] | {key: value for key, value in vision.items() if value is not None}
    for key, kind in TYPES.items():
        if key in values and (not isinstance(values[key], kind) or isinstance(values[key], bool) is not (kind is bool)):
            raise UserError(f"{path}: {key}: {values[key]!r} is not understood")
    if values["num_channels"] != 3:
        raise UserError(f"{path}: num_channels: only images of three channels are supported")
    if values["hidden_act"] not in ACTIVATIONS:
        known = ", ".join(ACTIVATIONS)
        raise UserError(f"{path}: hidden_act: {values['hidden_act']!r} is not supported (known: {known})")
    sides = {key: _side(values[key], key, path) for key in ("image_size", "patch_size")}
    dim = values["hidden_size"]
    for key in NUMBERS:
        if key in values and not -(key in NONE_TOO) < values[key] < LARGEST:
            raise UserError(f"{path}: {key}: should be a number above 0, not {values[key]!r}")
    fields = {
        "img_size": sides["image_size"], "patch_size": sides["patch_size"], "embed_dim": dim,
        "depth": values["num_hidden_layers"], "num_heads": values["num_attention_heads"],
        "qkv_bias": values.get("qkv_bias", True), "act_layer": ACTIVATIONS[values["hidden_act"]],
        "norm_eps": values["layer_norm_eps"], "reg_tokens": values.get("num_register_tokens", 0),
        **variant.said(values, path), **variant.fields,
    }  # fmt: skip
    if "mlp_ratio" not in DEFAULTS[variant.kind]:
        fields["mlp_ratio"] = ratio(values["intermediate_size"], dim)
    elif values["use_swiglu_ffn"]:
        hidden = _gated(int(dim * values["mlp_ratio"]))
        fields |= {"mlp_layer": "swiglu_packed", "act_layer": "silu", "mlp_ratio": ratio(2 * hidden, dim)}
    else:
        fields["mlp_ratio"] = values["mlp_ratio"]
    return altered(Architecture(), fields, str(path))


def config_of(architecture: Architecture, variant: Variant) -> dict[str, Any]:
    """The tower's configuration, the model's class and labels apart."""
    hidden_act = next(theirs for theirs, ours in ACTIVATIONS.items() if ours == architecture.act_layer)
    dim, hidden = architecture.embed_dim, architecture.hidden_dim
    values = DEFAULTS[variant.kind] | {
        "hidden_size": dim, "num_hidden_layers": architecture.depth, "num_attention_heads": architecture.num_heads,
        "image_size": architecture.img_size, "patch_size": architecture.patch_size, "hidden_act": hidden_act,
        "layer_norm_eps": architecture.norm_eps,
    }  # fmt: skip
    if "qkv_bias" in values:
        values["qkv_bias"] = architecture.qkv_bias
    if "num_register_tokens" in values:
        values["num_register_tokens"] = max(architecture.reg_tokens, 1)
    values |= variant.written(architecture)
    if "mlp_ratio" not in values:
        values["intermediate_size"] = hidden
        return values
    gated = architecture.mlp_layer == "swiglu_packed"
    widths = {r: 2 * _gated(dim * r) if gated else dim * r for r in range(1, 65)}  # whole ratios only, by its class
    values |= {
        "mlp_ratio": next((r for r, width in widths.items() if width == hidden), 1),
        "use_swiglu_ffn": gated,
        "layerscale_value": architecture.init_values or 1.0,
    }
    if gated:
        values["hidden_act"] = "gelu"  # not used: its gate is always SiLU
    return values if variant.kind != "dinov2" else values | {"use_mask_token": False}


def whole_config(config: dict[str, Any], name: str, variant: Variant, labels: list[str]) -> dict[str, Any]:
    """``config.json``, with the tower's configuration inside where the class wants it there."""
    if variant.head is names.PROJECTION:
        config = config | {"projection_dim": len(labels)}
        labels = []
    config = {"model_type": variant.kind, **config}
    if variant.whole:
        config = {"model_type": variant.whole, "vision_config": {**config, "vision_use_head": False}}
    named = {
        "id2label": {str(index): label for index, label in enumerate(labels)},
        "label2id": {label: index for index, label in enumerate(labels)},
    }
    return {"architectures": [name], **config, **(named if labels else {})}


def _gated(hidden: int) -> int:
    """The width of DINOv2's SwiGLU: two thirds, rounded up to a multiple of 8."""
    return (int(hidden * 2 / 3) + 7) // 8 * 8


def _side(value: Any, key: str, path: Path) -> int:
    if isinstance(value, list) and len(value) == 2 and value[0] == value[1]:
        value = value[0]
    if not isinstance(value, int) or not 0 < value < 2**16:
        raise UserError(f"{path}: {key}: only squares are supported, not {value!r}")
    return value

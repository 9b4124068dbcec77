"""Writes ``vit/architectures.json`` from the timm that is installed: ``python -m torch_ref.tools.registry``.

The constructor's arguments are caught on their way into timm's model builder, so nothing is built or downloaded.
"""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any
from unittest import mock

import timm
import torch.nn as nn
from timm.layers import RmsNorm, SwiGLU, get_act_layer
from timm.layers.mlp import GluMlp
from timm.models import beit, deit, eva, get_pretrained_cfg, vision_transformer
from timm.models._registry import _model_default_cfgs

from convert.timm.config import SPOKEN
from mlx_peft.vit.architecture import LATER, Architecture
from mlx_peft.vit.registry import FILE

MODULES = (vision_transformer, deit, eva, beit)
FAMILIES = {eva.Eva: "eva", beit.Beit: "beit"}
"""The families whose classes have words of their own, by their class."""

SAME = set(Architecture.model_fields) - {
    *("distilled", "embed_norm", "norm_layer", "norm_eps", "act_layer", "mlp_layer"),
    *LATER,
}
CONVERTED = {"embed_norm_layer", "norm_layer", "act_layer", "mlp_layer", "block_fn"}
IGNORED = {"dynamic_img_size", "feature_cfg", "pretrained_filter_fn", "pretrained_strict"}
NOT_PLAIN = {
    "block_fn": {
        "ParallelThingsBlock": "its blocks run several attentions and MLPs side by side",
        "ParallelScalingBlock": "its blocks run attention and MLP in parallel from one product",
        "DiffParallelScalingBlock": "its blocks run differential attention and MLP in parallel",
    },
    "attn_layer": {"diff": "it uses differential attention"},
    "global_pool": {"prr": "it pools by patch representation refinement"},
    "img_size": {(1024, 768): "its images are no squares"},
}
TAG_DEFAULTS: dict[str, Any] = {
    "hub_id": "timm/{name}.{tag}",
    "hub_filename": "model.safetensors",
    "num_classes": 1000,
    "normalization": "inception",
    "interpolation": "bicubic",
    "crop_pct": 0.9,
    "crop_mode": "center",
    "license": "apache-2.0",
    "note": None,
}
ONE_LINE = {"architecture", "resampling"}
TAG_INDENT = " " * 4
NORMALIZATIONS = {
    "inception": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "satellite": ((0.43, 0.411, 0.296), (0.213, 0.156, 0.143)),
    "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}


class Caught(Exception):
    """Carries a builder's arguments out of timm."""

    def __init__(self, model_class: type, arguments: dict[str, Any]):
        self.model_class, self.arguments = model_class, arguments


def construction(name: str) -> Caught:
    """What timm would build a model with."""

    def catch(model_class: type, variant: str, pretrained: bool, **arguments: Any) -> None:
        raise Caught(model_class, {key: value for key, value in arguments.items() if value is not None})

    with ExitStack() as patches:
        for module in MODULES:
            patches.enter_context(mock.patch.object(module, "build_model_with_cfg", catch))
        try:
            timm.create_model(name)
        except Caught as caught:
            return caught
    raise NotImplementedError(f"{name} is not built by build_model_with_cfg")


def why_not(arguments: dict[str, Any]) -> str | None:
    """The reasons why a model is no plain ViT, or None."""
    found = []
    for argument, reasons in NOT_PLAIN.items():
        value = arguments.get(argument)
        if value is not None and (name := getattr(value, "__name__", value)) in reasons:
            found.append(reasons[name])
    if len({*arguments.get("num_kv_heads", ())}) > 1:
        found.append("heads of some blocks share keys and values")
    return ", and ".join(found) or None


def architecture(caught: Caught) -> dict[str, Any]:
    """timm's constructor arguments as fields of ``Architecture``; what is at its default is left out."""
    fields = (in_words if caught.model_class in FAMILIES else of_vit)(dict(caught.arguments), caught.model_class)
    plain = Architecture(**fields).model_dump()
    return {name: value for name, value in plain.items() if value != Architecture.model_fields[name].default}


def in_words(arguments: dict[str, Any], model_class: type) -> dict[str, Any]:
    """The arguments of a class that has words of its own as fields; what it is not told is at its own default."""
    spoken = SPOKEN[FAMILIES[model_class]]
    norms = norm_fields(arguments.pop("norm_layer", None))
    defaults = {name: parameter.default for name, parameter in inspect.signature(model_class).parameters.items()}
    known = spoken.words(Architecture()).keys()
    if unknown := arguments.keys() - known - IGNORED:
        raise NotImplementedError(f"arguments without a field: {sorted(unknown)}")
    said = {word: arguments.get(word, defaults[word]) for word in known}
    if isinstance(sides := said.get("ref_feat_shape"), tuple):
        [said["ref_feat_shape"]] = set(sides)
    return spoken.fields(spoken.Words(**said)) | norms


def of_vit(arguments: dict[str, Any], model_class: type) -> dict[str, Any]:
    """The arguments of ``VisionTransformer`` as fields."""
    fields = {name: arguments.pop(name) for name in SAME & arguments.keys()}
    fields["distilled"] = model_class is deit.VisionTransformerDistilled
    fields["post_norm"] = arguments.get("block_fn") is vision_transformer.ResPostBlock
    fields |= norm_fields(arguments.get("norm_layer"))
    if "embed_norm_layer" in arguments:
        if norm_fields(arguments["embed_norm_layer"]) != norm_fields(arguments["norm_layer"]):
            raise NotImplementedError("an embed_norm_layer that differs from norm_layer")
        fields["embed_norm"] = True
    if act := arguments.get("act_layer"):
        names = {get_act_layer(name): name for name in ("gelu", "gelu_tanh", "quick_gelu", "silu")} | {nn.SiLU: "silu"}
        fields["act_layer"] = names[get_act_layer(act)]
    if mlp := arguments.get("mlp_layer"):
        fields["mlp_layer"] = {SwiGLU: "swiglu", GluMlp: "swiglu_packed"}[getattr(mlp, "func", mlp)]
    if unknown := arguments.keys() - CONVERTED - IGNORED:
        raise NotImplementedError(f"arguments without a field: {sorted(unknown)}")
    return fields


def norm_fields(layer: Any) -> dict[str, Any]:
    """A norm layer, perhaps a partial of one with its eps, as fields of ``Architecture``."""
    layer = RmsNorm if layer == "rmsnorm" else layer
    kind = "rmsnorm" if getattr(layer, "func", layer) is RmsNorm else "layernorm"
    return {"norm_layer": kind, "norm_eps": getattr(layer, "keywords", {}).get("eps", 1e-6)}


def resampling(filter_fn: Callable[..., Any]) -> dict[str, Any]:
    """How the checkpoint filter resizes a position grid, where that is not its default."""
    keywords = filter_fn.keywords if isinstance(filter_fn, functools.partial) else {}
    return {name: value for name, value in keywords.items() if name != "adapt_layer_scale" and value is not None}


def tags(name: str, img_size: int) -> dict[str, dict[str, Any]]:
    """The weights that exist for a name, the default first; what is at its default is left out."""
    default = _model_default_cfgs[name]
    rows = {}
    for tag in dict.fromkeys([*default.tags, *default.cfgs]):
        cfg = get_pretrained_cfg(f"{name}.{tag}")
        if not cfg.has_weights:
            continue
        [normalization] = [key for key, value in NORMALIZATIONS.items() if value == (cfg.mean, cfg.std)]
        row = {
            "img_size": cfg.input_size[-1],
            "hub_id": TAG_DEFAULTS["hub_id"] if cfg.hf_hub_id == f"timm/{name}.{tag}" else cfg.hf_hub_id or None,
            "hub_filename": cfg.hf_hub_filename or TAG_DEFAULTS["hub_filename"],
            "num_classes": cfg.num_classes,
            "normalization": normalization,
            "interpolation": cfg.interpolation,
            "crop_pct": cfg.crop_pct,
            "crop_mode": cfg.crop_mode,
            "license": cfg.license,
            "note": "; ".join(cfg.notes) if cfg.notes and "quickgelu" not in name else None,
        }
        rows[tag] = {key: value for key, value in row.items() if value != {**TAG_DEFAULTS, "img_size": img_size}[key]}
    return rows


def registry() -> dict[str, Any]:
    """The whole of the data file."""
    models, left_out = {}, {}
    for name in sorted(name for module in MODULES for name in timm.list_models(module=module.__name__.split(".")[-1])):
        caught = construction(name)
        if reason := why_not(caught.arguments):
            left_out[name] = reason
            continue
        caught.arguments.setdefault("img_size", _model_default_cfgs[name].default.input_size[-1])
        fields = architecture(caught)
        resample = resampling(caught.arguments["pretrained_filter_fn"])
        models[name] = {
            "architecture": fields,
            **({"resampling": resample} if resample else {}),
            "tags": tags(name, caught.arguments["img_size"]),
        }
    return {
        "timm": timm.__version__,
        "normalizations": NORMALIZATIONS,
        "tag_defaults": TAG_DEFAULTS,
        "left_out": left_out,
        "models": models,
    }


def dumps(value: Any, indent: str = "") -> str:
    """JSON with a line for each architecture and each tag: compact, and a change shows as a line."""
    if not isinstance(value, dict) or not value or indent == TAG_INDENT:
        return json.dumps(value)
    inner = indent + " "
    rows = (
        f"{inner}{json.dumps(key)}: {json.dumps(item) if key in ONE_LINE else dumps(item, inner)}"
        for key, item in value.items()
    )
    return "{\n" + ",\n".join(rows) + f"\n{indent}}}"


def main() -> None:
    data = registry()
    text = dumps(data)
    FILE.write_text(text + "\n", encoding="utf-8")
    print(f"{FILE}: {len(data['models'])} models, {len(data['left_out'])} left out, {len(text)} characters")


if __name__ == "__main__":
    main()

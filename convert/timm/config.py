"""The words of timm's ``config.json``, in both directions."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from convert.files import listed, read_json
from convert.timm import beit, eva
from mlx_peft.config.quantization import Quantization
from mlx_peft.config.tokens import ReducerConfig, described
from mlx_peft.core.errors import UserError, shown
from mlx_peft.core.problems import in_a_line, reason, validated
from mlx_peft.vit.architecture import LATER, Architecture, Preprocessing
from mlx_peft.vit.registry import find

CONFIG = "config.json"
WEIGHTS = "model.safetensors"

OURS = "mlx_peft:"
"""It stands before the name of an architecture that timm has no words for, so that timm refuses the folder."""

SPOKEN: dict[str, Any] = {"eva": eva, "beit": beit}
"""What says, of a family, which words its class in timm has: ``Words``, ``fields`` and ``words``; others have timm's
ViT's."""

TIMM_EPS = 1e-6
"""The eps of a norm that timm's configuration names, as it can name no other."""

NO_MATTER = {
    *("num_classes", "weight_init", "fix_init", "head_init_scale", "dynamic_img_size", "dynamic_img_pad"),
    *(f"{what}_rate" for what in ("drop", "pos_drop", "patch_drop", "proj_drop", "attn_drop", "drop_path")),
    *(f"rope_{what}_coords" for what in ("shift", "jitter", "rescale")),  # in training alone
}
"""These arguments of timm's change neither the parameters nor the forward pass in evaluation."""


def quantization_of(entry: Any, path: Path) -> Quantization:
    """MLX's entry; ``mode`` is there only in some versions' files. Raises UserError for one that is not supported."""
    fields = dict(entry) if isinstance(entry, dict) else {}
    mode = fields.pop("mode", "affine")
    try:
        if mode != "affine":
            raise ValueError
        return Quantization.model_validate(fields)
    except ValueError as error:  # pydantic's is one
        raise UserError(
            f"{path}: quantization: only MLX's affine mode is supported, bits and group_size alike in all layers, "
            f"not {shown(entry)}"
        ) from error


def tokens_of(entry: Any, path: Path) -> ReducerConfig | None:
    """Our own entry; None where there is none. Raises UserError for one that is not understood."""
    return None if entry is None else described(entry, f"{path}: tokens")


def preprocessing_of(config: Mapping[str, Any], path: Path) -> Preprocessing:
    """What ``pretrained_cfg`` says of images. Raises UserError where it says too little, or what is not understood."""
    if missing := [key for key in ("mean", "std") if key not in config]:
        raise UserError(
            f"{path}: pretrained_cfg lacks {' and '.join(missing)}, without which images cannot be prepared"
        )
    try:
        return Preprocessing(**{key: config[key] for key in Preprocessing.model_fields if key in config})
    except ValidationError as error:
        raise UserError(f"{path}: pretrained_cfg: {in_a_line(error, Preprocessing)}") from error


def in_our_words(folder: Path) -> bool:
    """Whether a folder of timm's layout is of a model that timm has no words for, and refuses."""
    return str(read_json(folder / CONFIG).get("architecture")).startswith(OURS)


def from_arguments(arguments: Mapping[str, Any], path: Path, usual: Architecture) -> dict[str, Any]:
    """timm's ``model_args`` as fields of ``Architecture``, of a model that is the usual one without them.

    Raises UserError for what cannot be one.
    """
    fields = {name: value for name, value in arguments.items() if value is not None and name not in NO_MATTER}
    if fields.pop("in_chans", 3) != 3:
        raise UserError(f"{path}: model_args.in_chans: only images of three channels are supported")
    for side in ("img_size", "patch_size", "ref_feat_shape"):
        if isinstance(value := fields.get(side), list):
            if not value or value[1:] != value[:-1]:
                raise UserError(f"{path}: model_args.{side}: only squares are supported, not {shown(value)}")
            fields[side] = value[0]
    return (_in_words if usual.family in SPOKEN else _of_vit)(fields, path, usual)


def _in_words(fields: dict[str, Any], path: Path, usual: Architecture) -> dict[str, Any]:
    """What a class is told beside the usual that has words of its own."""
    spoken = SPOKEN[usual.family]
    said = validated(spoken.Words, f"{path}: model_args", spoken.words(usual) | fields)
    try:
        found = spoken.fields(said)
    except ValueError as error:
        raise UserError(f"{path}: model_args: a model with {error} is not supported") from error
    return {name: value for name, value in found.items() if name != "img_size" or name in fields}


def _of_vit(fields: dict[str, Any], path: Path, usual: Architecture) -> dict[str, Any]:
    """What timm's ``VisionTransformer`` is told beside the usual."""
    if "pos_embed" in fields:
        fields["pos_embed"] = fields["pos_embed"] == "learn"
    if "norm_layer" in fields:
        fields["norm_eps"] = TIMM_EPS
    if fields.pop("embed_norm_layer", None):
        fields["embed_norm"] = True
    return fields


def timm_arguments(architecture: Architecture, name: str) -> dict[str, Any]:
    """The fields in which an architecture differs from what its name stands for, as timm's ``model_args``.

    Raises:
        UserError: for a difference that timm's configuration cannot express.
    """
    usual = find(name).architecture
    if usual.family in SPOKEN:
        return _words_for(architecture, usual, name)
    every = {key: getattr(architecture, key) for key in Architecture.model_fields}  # a dump leaves some out
    changes = {key: value for key, value in every.items() if value != getattr(usual, key)}
    changes.pop("img_size", None)  # is pretrained_cfg's input_size
    if "fc_norm" in changes:
        changes["fc_norm"] = architecture.norm_after_pool
    if "pos_embed" in changes:
        changes["pos_embed"] = "learn" if architecture.pos_embed else "none"
    norms = changes.keys() & {"norm_layer", "norm_eps", "embed_norm"}
    unsaid = ("distilled", "mlp_layer", *LATER)
    lost = {key for key, value in changes.items() if value in (None, "token_avg") or key in unsaid}
    if norms and (architecture.norm_eps != TIMM_EPS or changes.get("embed_norm") is False):
        lost |= norms
    if lost:
        raise UserError(f"timm's config.json cannot express that this {name} has another {listed(sorted(lost))}")
    if norms:
        changes = {key: value for key, value in changes.items() if key not in norms}
        changes["norm_layer"] = architecture.norm_layer
        if architecture.embed_norm:
            changes["embed_norm_layer"] = architecture.norm_layer
    return changes


def _words_for(architecture: Architecture, usual: Architecture, name: str) -> dict[str, Any]:
    """What a class has to be told beside the usual. Raises UserError where it would be another model all the same."""
    spoken = SPOKEN[usual.family]
    before, said = spoken.words(usual), spoken.words(architecture)
    changes = {word: value for word, value in said.items() if value != before[word] and word != "img_size"}
    after = architecture.final_norm and architecture.norm_after_pool
    explicit = {"use_fc_norm": after, "use_post_transformer_norm": architecture.final_norm and not after}
    changes |= {word: value for word, value in explicit.items() if word in changes}  # timm passes over a None
    try:
        said_of = spoken.fields(spoken.Words(**before | changes)) | {"img_size": architecture.img_size}
    except ValueError as error:  # pydantic's is one
        raise UserError(f"timm's config.json cannot express a {name} with {reason(error, spoken.Words)}") from error
    found, wanted = usual.model_copy(update=said_of), architecture
    if found.norm_after_pool == wanted.norm_after_pool:
        found = found.model_copy(update={"fc_norm": wanted.fc_norm})
    lost = {key for key in Architecture.model_fields if getattr(found, key) != getattr(wanted, key)}
    lost |= {word for word, value in changes.items() if value in (None, "token_avg")}
    if lost:
        raise UserError(f"timm's config.json cannot express that this {name} has another {listed(sorted(lost))}")
    return changes

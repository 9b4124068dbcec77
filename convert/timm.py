"""timm's checkpoints: from the hub, from a folder in its hub layout or from a file, and out into such a folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import ValidationError

from convert.files import listed, new_folder, read_json, read_tensors, write_json, write_safetensors
from convert.fit import canonical, must_be_sound, must_name_all
from convert.hub import download
from convert.layouts.naming import fitting
from convert.problem import is_multi_label, written
from mlx_peft.config.architecture import Architecture, Preprocessing
from mlx_peft.config.border import Tensors
from mlx_peft.config.errors import UserError
from mlx_peft.config.quantization import Quantization
from mlx_peft.config.registry import Resampling, altered, find, tags
from mlx_peft.config.shapes import heads

if TYPE_CHECKING:
    from convert.base import Base

CONFIG = "config.json"
WEIGHTS = "model.safetensors"

OURS = "mlx_peft:"
"""Before the name of an architecture that timm has no words for, so that timm refuses the folder."""

TIMM_EPS = 1e-6
"""The eps of a norm that timm's configuration names, as it can name no other."""

NO_MATTER = {"num_classes", "weight_init", "fix_init", "dynamic_img_size", "dynamic_img_pad"} | {
    f"{what}_rate" for what in ("drop", "pos_drop", "patch_drop", "proj_drop", "attn_drop", "drop_path")
}
"""Arguments of timm's that change neither the parameters nor the forward pass in evaluation."""


@dataclass(frozen=True)
class Checkpoint:
    """Weights with all that is known about them, as found.

    Attributes:
        name: timm's, with a tag where that is known of the weights: the hub's, or one that the user gave.
        source: where the weights came from, for a person.
        preprocessing: None where it is unknown.
        tensors: under timm's names; None where they are yet to be drawn.
        notes: cautions, for a person.
        quantization: of the tensors; None where they are plain.
        classes: names, in the order of the head's rows; empty where they are unknown.
        layout: whose names and shapes the tensors had.
        described: whether the source says itself what its architecture is, rather than its name or its shapes.
        multi_label: whether an image may have several of the classes.
    """

    name: str
    source: str
    architecture: Architecture
    preprocessing: Preprocessing | None
    resampling: Resampling
    tensors: Tensors | None = None
    notes: tuple[str, ...] = ()
    quantization: Quantization | None = None
    classes: tuple[str, ...] = ()
    layout: str = "timm"
    described: bool = False
    multi_label: bool = False


def from_hub(name: str) -> Checkpoint:
    """timm's published weights, downloaded once and kept in the hub's cache."""
    entry = find(name)
    if entry.hub_id is None or entry.hub_filename is None:
        others = [tag for tag in tags(name.partition(".")[0]) if tag != entry.tag]
        raise UserError(
            f"model.weights: the hub has no weights for {name!r} (other tags: {', '.join(others) or 'none'}); "
            "name a file, or write weights: none for random ones"
        )
    tensors = canonical(read_tensors(download(entry.hub_id, entry.hub_filename)))
    must_be_sound(tensors, entry.architecture, None, entry.hub_id)
    notes = (f"{entry.name}: {entry.note}",) if entry.note else ()
    return Checkpoint(
        entry.name, entry.hub_id, entry.architecture, entry.preprocessing, entry.resampling, tensors, notes,
        described=True,
    )  # fmt: skip


def from_tensors(tensors: Tensors, path: Path, name: str | None) -> Checkpoint:
    """Tensors alone, under timm's names: what they are is taken from the model's name.

    Without a name, it is the only one whose parameters have these shapes.

    Raises:
        UserError: where several models have these shapes, and where the weights published under the name were prepared
            in several ways and no tag tells which.
    """
    tensors, notes = _without_projection(canonical(tensors))
    name = name or _only(fitting(tensors), path)
    entry = find(name)
    must_be_sound(tensors, entry.architecture, None, path)
    if entry.tag and not name.endswith(f".{entry.tag}"):
        others = [find(f"{name}.{tag}") for tag in tags(name)]
        recipes = {(other.preprocessing.mean, other.preprocessing.std) for other in others if other.preprocessing}
        if len(recipes) > 1:
            raise UserError(
                f"model.name: weights called {name} normalise their images in different ways, and {path} does not say "
                f"which: add a tag to the name ({', '.join(tags(name))})"
            )
    return Checkpoint(name, str(path), entry.architecture, entry.preprocessing, entry.resampling, tensors, notes)


def _only(names: list[str], path: Path) -> str:
    """The one name that fits. Raises UserError where none does or several do."""
    if len(names) == 1:
        return names[0]
    if not names:
        raise UserError(
            f"{path}: no model of timm's has these shapes: name the nearest with --model NAME, and what differs with "
            "--set FIELD=VALUE"
        )
    raise UserError(
        f"{path}: its shapes are those of several models, and it does not say which: add --model NAME, one of "
        f"{', '.join(names)}, with a tag where they are published weights"
    )


def _without_projection(tensors: Tensors) -> tuple[Tensors, tuple[str, ...]]:
    """DINO's projection head, which is no classifier, is left out."""
    kept = {name: t for name, t in tensors.items() if not name.startswith(("head.mlp.", "head.last_layer."))}
    note = ("head: the projection head of self-supervised training is left out",)
    return kept, note if len(kept) < len(tensors) else ()


def from_folder(folder: Path, name: str | None, source: str) -> Checkpoint:
    """A model in timm's hub layout: its ``config.json`` says what it is, and the name, if there is one, must agree.

    Raises:
        UserError: where something is missing, or the configuration holds what is not understood.
    """
    path = folder / CONFIG
    config = read_json(path)
    pretrained = config.get("pretrained_cfg", config)
    model = config.get("architecture")
    if not isinstance(model, str) or not isinstance(pretrained, dict):
        raise UserError(f"{path}: not a configuration of timm's: it names no architecture")
    model, exact = model.removeprefix(OURS), config.get("exact_architecture")
    if name is not None and model != name.partition(".")[0]:
        raise UserError(f"model.name is {name!r}, but {path} is of a {model!r}")
    entry = find(model)
    size = pretrained.get("input_size", [3, entry.architecture.img_size, entry.architecture.img_size])
    if not isinstance(size, list) or len(size) != 3 or size[0] != 3 or size[1] != size[2]:
        raise UserError(f"{path}: pretrained_cfg.input_size: only squares of three channels are supported, not {size}")
    arguments = config.get("model_args", {})
    if not isinstance(arguments, dict):
        raise UserError(f"{path}: model_args is no object")
    tag = pretrained.get("tag")
    weights = next((file for file in (folder / WEIGHTS, folder / "pytorch_model.bin") if file.is_file()), None)
    if weights is None:
        raise UserError(f"{folder}: no {WEIGHTS} in this folder")
    quantization = _quantization(config["quantization"], path) if "quantization" in config else None
    architecture = (
        altered(Architecture(), exact, f"{path}: exact_architecture")
        if isinstance(exact, dict)
        else altered(
            entry.architecture, {"img_size": size[-1]} | _from_arguments(arguments, path), f"{path}: model_args"
        )
    )
    tensors = canonical(read_tensors(weights, words=quantization is not None))
    must_be_sound(tensors, architecture, quantization, weights)
    labels = config.get("label_names")
    classes = tuple(map(str, labels)) if isinstance(labels, list) else ()
    must_name_all(classes, tensors, f"{path}: label_names")
    return Checkpoint(
        name=f"{model}.{tag}" if tag else model,
        source=source,
        architecture=architecture,
        preprocessing=_preprocessing(pretrained, path),
        resampling=entry.resampling,
        tensors=tensors,
        quantization=quantization,
        described=True,
        classes=classes,
        multi_label=is_multi_label(config, path),
    )


def _quantization(entry: Any, path: Path) -> Quantization:
    """MLX's entry; ``mode`` is there only in some versions' files."""
    fields = dict(entry) if isinstance(entry, dict) else {}
    mode = fields.pop("mode", "affine")
    try:
        if mode != "affine":
            raise ValueError
        return Quantization(**fields)
    except ValueError as error:  # pydantic's is one
        raise UserError(
            f"{path}: quantization: only MLX's affine mode is supported, bits and group_size alike in all layers, "
            f"not {entry}"
        ) from error


def _preprocessing(config: Mapping[str, Any], path: Path) -> Preprocessing:
    if missing := [key for key in ("mean", "std") if key not in config]:
        raise UserError(
            f"{path}: pretrained_cfg lacks {' and '.join(missing)}, without which images cannot be prepared"
        )
    try:
        return Preprocessing(**{key: config[key] for key in Preprocessing.model_fields if key in config})
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors())
        raise UserError(f"{path}: pretrained_cfg: {faults}") from error


def _from_arguments(arguments: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """timm's ``model_args`` as fields of ``Architecture``."""
    fields = {name: value for name, value in arguments.items() if value is not None and name not in NO_MATTER}
    if fields.pop("in_chans", 3) != 3:
        raise UserError(f"{path}: model_args.in_chans: only images of three channels are supported")
    for side in ("img_size", "patch_size"):
        if isinstance(value := fields.get(side), list):
            if not value or value[1:] != value[:-1]:
                raise UserError(f"{path}: model_args.{side}: only squares are supported, not {value}")
            fields[side] = value[0]
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
    changes = {key: value for key, value in architecture.model_dump().items() if value != getattr(usual, key)}
    changes.pop("img_size", None)  # is pretrained_cfg's input_size
    if "fc_norm" in changes:
        changes["fc_norm"] = architecture.norm_after_pool
    if "pos_embed" in changes:
        changes["pos_embed"] = "learn" if architecture.pos_embed else "none"
    norms = changes.keys() & {"norm_layer", "norm_eps", "embed_norm"}
    lost = {key for key, value in changes.items() if value in (None, "token_avg") or key in ("distilled", "mlp_layer")}
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


def write_model(
    folder: Path,
    *,
    base: Base,
    tensors: Mapping[str, np.ndarray],
    classes: Sequence[str] = (),
    quantization: Quantization | None = None,
    dtype: str = "float32",
    exactly: bool = False,
) -> None:
    """Writes a whole model that ``timm.create_model("local-dir:FOLDER", pretrained=True)`` and ``load_base`` open.

    Args:
        base: what the model was made from: name, architecture and preprocessing, and whether it is of several labels.
        tensors: timm's state dictionary.
        classes: names, in the order of the head's rows; none where they are unknown.
        quantization: of the tensors; timm cannot open such a model.
        dtype: of the weights that are not quantised.
        exactly: write what timm has no words for in words of our own; timm refuses such a folder.

    Raises:
        UserError: where the folder exists and holds files, cannot be written, or timm has no words for the model.
    """
    name, _, tag = base.name.partition(".")
    architecture, preprocessing = base.architecture, base.preprocessing
    classifier = heads(architecture)
    num_classes = len(tensors.get("head.weight", ()))
    arguments, exact = {}, {}
    try:
        arguments = timm_arguments(architecture, name)
    except UserError:
        if not exactly:
            raise
        exact = {"exact_architecture": architecture.model_dump(mode="json")}
    config = {
        "architecture": OURS + name if exact else name,
        "num_classes": num_classes,
        "num_features": architecture.feature_dim,
        "global_pool": architecture.global_pool,
        **({"label_names": list(classes)} if classes else {}),
        **written(base.multi_label),
        **({"model_args": arguments} if arguments else {}),
        **exact,
        **({"quantization": quantization.model_dump(mode="json")} if quantization else {}),
        "pretrained_cfg": {
            **({"tag": tag} if tag else {}),
            "custom_load": False,
            "input_size": [3, architecture.img_size, architecture.img_size],
            "fixed_input_size": True,
            **preprocessing.model_dump(mode="json"),
            "num_classes": num_classes,
            "pool_size": None,
            "first_conv": "patch_embed.proj",
            "classifier": classifier[0] if len(classifier) == 1 else list(classifier),
        },
    }
    with new_folder(folder) as new:
        write_json(new / CONFIG, config)
        write_safetensors(new / WEIGHTS, tensors, dtype=dtype)

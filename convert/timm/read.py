"""timm's checkpoints: from the hub, from a folder in its hub layout or from a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

from convert.canonical import canonical
from convert.checkpoint import Checkpoint
from convert.files import read_json, read_tensors
from convert.fit import class_names, must_be_sound
from convert.hub import download
from convert.layouts.dinov3 import without_zero_biases
from convert.layouts.naming import fitting
from convert.problem import task_of
from convert.timm.config import CONFIG, OURS, WEIGHTS, from_arguments, preprocessing_of, quantization_of, tokens_of
from mlx_peft.core.border import Tensors
from mlx_peft.core.errors import LONGEST_NAME, UserError, shown
from mlx_peft.core.text import counted
from mlx_peft.vit.architecture import Architecture
from mlx_peft.vit.registry import altered, find, tags


def from_hub(name: str) -> Checkpoint:
    """timm's published weights, downloaded once and kept in the hub's cache. Heads of 1,000 rows are ImageNet-1k's."""
    entry = find(name)
    if entry.hub_id is None or entry.hub_filename is None:
        others = [tag for tag in tags(name.partition(".")[0]) if tag != entry.tag]
        raise UserError(
            f"model.weights: the hub has no weights for {name!r} (other tags: {', '.join(others) or 'none'}); "
            "name a file, or write weights: none for random ones"
        )
    tensors, notes = canonical(read_tensors(download(entry.hub_id, entry.hub_filename)), entry.architecture.family)
    must_be_sound(tensors, entry.architecture, None, entry.hub_id)
    notes = (f"{entry.name}: {entry.note}", *notes) if entry.note else notes
    return Checkpoint(
        entry.name, entry.hub_id, entry.architecture, entry.preprocessing, entry.resampling, tensors, notes,
        described=True, imagenet_1k=entry.num_classes == 1000,
    )  # fmt: skip


def from_tensors(tensors: Tensors, path: Path, name: str | None) -> Checkpoint:
    """Tensors alone, under timm's names: what they are is taken from the model's name.

    Without a name, it is the only one whose parameters have these shapes.

    Raises:
        UserError: where several models have these shapes, and where the weights published under the name were prepared
            in several ways and no tag tells which.
    """
    more: tuple[str, ...] = ()
    name = name or _only(_fitting(tensors), path)
    entry = find(name)
    tensors, notes = canonical(tensors, entry.architecture.family)
    tensors, zeros = without_zero_biases(tensors, entry.architecture)
    notes += zeros
    must_be_sound(tensors, entry.architecture, None, path)
    if entry.tag and not name.endswith(f".{entry.tag}"):
        others = [find(f"{name}.{tag}") for tag in tags(name)]
        recipes = {(other.preprocessing.mean, other.preprocessing.std) for other in others if other.preprocessing}
        if len(recipes) > 1:
            raise UserError(
                f"model.name: weights called {name} normalise their images in different ways, and {path} does not say "
                f"which: add a tag to the name ({', '.join(tags(name))})"
            )
        unlike = [other.name for other in others if other.preprocessing != entry.preprocessing]
        if unlike:
            more += (
                f"images are prepared as for {entry.name}; {', '.join(unlike)} differ in crop or interpolation: "
                "add the tag to the name where it is one of them",
            )
    return Checkpoint(name, str(path), entry.architecture, entry.preprocessing, entry.resampling, tensors, notes + more)


def _fitting(tensors: Tensors) -> list[str]:
    """The names that the tensors fit under, whichever family's they are."""
    families = get_args(Architecture.model_fields["family"].annotation)
    return list(dict.fromkeys(name for family in families for name in fitting(canonical(tensors, family)[0])))


def _only(names: list[str], path: Path) -> str:
    """The one name that fits. Raises UserError where none does or several do."""
    if len(names) == 1:
        return names[0]
    if not names:
        raise UserError(
            f"{path}: no model of timm's has these shapes: name the nearest model, and the fields that differ",
            arguments=("model", "args"),
        )
    raise UserError(
        f"{path}: its shapes are those of several models, and it does not say which: name the model, one of "
        f"{', '.join(names)}, with a tag where they are published weights",
        arguments=("model",),
    )


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
    model = model.removeprefix(OURS)
    if name is not None and model != name.partition(".")[0]:
        raise UserError(f"model.name is {name!r}, but {path} is of a {model!r}")
    entry = find(model)
    size = pretrained.get("input_size", [3, entry.architecture.img_size, entry.architecture.img_size])
    if not isinstance(size, list) or len(size) != 3 or size[0] != 3 or size[1] != size[2]:
        found = shown(size)
        raise UserError(f"{path}: pretrained_cfg.input_size: only squares of three channels are supported, not {found}")
    tag = pretrained.get("tag")
    if tag is not None and (not isinstance(tag, str) or len(tag) > LONGEST_NAME):
        raise UserError(
            f"{path}: pretrained_cfg.tag: should be text of at most {LONGEST_NAME} characters, not {shown(tag)}"
        )
    weights = next((file for file in (folder / WEIGHTS, folder / "pytorch_model.bin") if file.is_file()), None)
    if weights is None:
        raise UserError(f"there is no {WEIGHTS} in {folder}")
    quantization = quantization_of(config["quantization"], path) if "quantization" in config else None
    architecture = _architecture(config, entry.architecture, size[-1], path)
    tensors = read_tensors(weights, words=quantization is not None)
    tensors, notes = canonical(tensors, architecture.family)
    must_be_sound(tensors, architecture, quantization, weights)
    rows, number = len(tensors.get("head.weight", ())), config.get("num_classes")
    if rows and isinstance(number, int) and number != rows:
        raise UserError(f"{path}: num_classes is {shown(number)}, and the head has {counted(rows, 'row')}")
    labels = config.get("label_names")
    return Checkpoint(
        name=f"{model}.{tag}" if tag else model,
        source=source,
        architecture=architecture,
        preprocessing=preprocessing_of(pretrained, path),
        resampling=entry.resampling,
        tensors=tensors,
        notes=notes,
        quantization=quantization,
        classes=class_names(labels if isinstance(labels, list) else (), tensors, f"{path}: label_names"),
        described=True,
        task=task_of(config, path),
        tokens=tokens_of(config.get("tokens"), path),
    )


def _architecture(config: dict[str, Any], usual: Architecture, size: Any, path: Path) -> Architecture:
    """What the model is: by its fields where the configuration has them, else the usual one with what timm is told.

    Raises:
        UserError: where the configuration holds what is not understood.
    """
    exact, arguments = config.get("exact_architecture"), config.get("model_args", {})
    if not isinstance(arguments, dict):
        raise UserError(f"{path}: model_args is no object")
    if isinstance(exact, dict):
        return altered(Architecture(), exact, f"{path}: exact_architecture")
    return altered(usual, {"img_size": size} | from_arguments(arguments, path, usual), f"{path}: model_args")

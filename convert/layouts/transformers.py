"""Hugging Face transformers' ViTs: ViT, DeiT, BEiT, DINOv2 and DINOv3, CLIP's and SigLIP's vision towers."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from convert.files import read_json, read_tensors
from convert.layouts import processor
from convert.layouts import transformers_names as names
from convert.layouts.layout import Reading, differing
from convert.layouts.renaming import from_timm, to_timm
from convert.layouts.transformers_classes import AVERAGE, VARIANTS, WRITTEN, Variant
from convert.layouts.transformers_config import architecture_of, class_of, config_of, whole_config
from convert.problem import task_of, written
from mlx_peft.core.border import Tensors
from mlx_peft.core.errors import UserError
from mlx_peft.tasks.registry import USUAL
from mlx_peft.tasks.task import Task
from mlx_peft.vit.architecture import Architecture, Preprocessing
from mlx_peft.vit.parameters import is_head
from mlx_peft.vit.registry import altered

CONFIG, WEIGHTS = "config.json", "model.safetensors"

WEIGHTLESS = ("global_pool", "norm_eps", "act_layer")
"""Fields that decide no tensor."""


def is_folder(config: Mapping[str, Any]) -> bool:
    """Whether a ``config.json`` is of transformers: it names its model type, and timm's its architecture."""
    return isinstance(config.get("model_type"), str) and "architecture" not in config


def read(folder: Path) -> Reading:
    """A folder that ``save_pretrained`` wrote.

    Raises:
        UserError: for another model class, a configuration that is not understood, and tensors that have no place.
    """
    path = folder / CONFIG
    config = read_json(path)
    if config.get("quantization_config"):
        raise UserError(f"{path}: quantization_config: the weights are in another tool's codes; take the plain model")
    tensors = _weights(folder)
    variant = VARIANTS[class_of(config, tensors, path)]
    tensors = variant.on_disk(tensors)
    architecture = architecture_of(config, variant, path)
    tensors, notes = _without_prefix(tensors)
    ours = to_timm(tensors, [*variant.pairs(architecture), *variant.head], str(folder))
    if not architecture.reg_tokens and (empty := ours.get("reg_token")) is not None and not empty.size:
        del ours["reg_token"]
    if variant.unused and (unused := [name for name in ours if re.fullmatch(variant.unused, name)]):
        ours = {name: tensor for name, tensor in ours.items() if name not in unused}
        notes.append(f"{unused[0].partition('.')[0]}: left out, the model's class does not use it")
    ours, architecture = _to_ours(ours, variant, architecture, str(folder))
    given, preprocessing = folder / processor.CONFIG, None
    if given.is_file():
        preprocessing, side = processor.read(read_json(given), given)
        if side != architecture.img_size:
            notes.append(
                f"{processor.CONFIG} prepares images of {side} pixels, and the model is of {architecture.img_size}: "
                f"they are prepared at {architecture.img_size}"
            )
    labels = config.get("id2label") or {}
    classes = tuple(str(labels[key]) for key in sorted(labels, key=int)) if _numbered(labels) else ()
    return Reading(
        ours,
        architecture,
        preprocessing,
        () if classes == tuple(f"LABEL_{i}" for i in range(len(classes))) else classes,
        tuple(notes),
        task_of(config, path),
    )


def pack(
    architecture: Architecture,
    preprocessing: Preprocessing,
    tensors: Tensors,
    classes: Sequence[str],
    task: Task = USUAL,
) -> tuple[dict[str, Any], dict[str, Any], Tensors]:
    """``config.json``, ``preprocessor_config.json`` and the tensors of a model that transformers opens.

    Of its classes, the first is taken that is the same model; with a head, one that classifies images if there is one.

    Raises:
        UserError: as ``class_for``.
    """
    prepared = processor.write(preprocessing, architecture.img_size)
    name, config = class_for(architecture, tensors)
    labels = list(classes) or [f"LABEL_{index}" for index in range(len(tensors.get("head.weight", ())))]
    config = whole_config(config, name, VARIANTS[name], labels) | written(task)
    return config, prepared, _to_theirs(tensors, VARIANTS[name], architecture)


def class_for(architecture: Architecture, tensors: Tensors) -> tuple[str, dict[str, Any]]:
    """The class of transformers that a model is, and the configuration that makes it one.

    Raises:
        UserError: where no class is, with what the nearest one differs in.
    """
    faults: list[tuple[int, str, dict[str, Any]]] = []
    headless = []
    for name in WRITTEN:
        variant = VARIANTS[name]
        if variant.head and "head.weight" not in tensors:
            continue
        config = config_of(architecture, variant)
        try:
            theirs = architecture_of(config, variant, Path(CONFIG))
        except UserError:  # as of heads too narrow for DINOv3's positions
            continue
        free = set()
        if variant.reads_both and not architecture.norm_after_pool:
            free = {"global_pool", "fc_norm"}  # its head reads the class token and the mean: half of it may be zero
        odd = differing(architecture, theirs, free)
        if variant.head is names.PROJECTION and tensors["head.bias"].any():
            odd.append("a bias of the head")
        if not variant.head and "head.weight" in tensors:
            headless += [name] * all(fault.startswith("global_pool:") for fault in odd)
            continue
        if not odd:
            return name, config
        faults.append((len(odd), f"{name} has no {', '.join(odd)}", _to_set(odd, theirs)))
    _, fault, settable = min(faults, key=lambda one: one[:2])
    advice = "".join(f"; with {key}={value} it is one, of the same weights" for key, value in settable.items())
    nearest = f"{headless[0]} is it without its classifier; the nearest with one" if headless else "the nearest"
    raise UserError(
        f"transformers has no class for this model: {nearest}, {fault}{advice}", arguments=("args",) * bool(settable)
    )


def _to_set(odd: Sequence[str], theirs: Architecture) -> dict[str, Any]:
    """What a user may set so that a model is of a class, where it differs in one field and that asks for no weights."""
    keys = [fault.partition(":")[0] for fault in odd]
    return {key: getattr(theirs, key) for key in keys if keys == [key] and key in WEIGHTLESS}


def _weights(folder: Path) -> Tensors:
    """The tensors of a folder, which may be several files."""
    index = folder / f"{WEIGHTS}.index.json"
    if index.is_file():
        files = read_json(index).get("weight_map", {})
        if not isinstance(files, dict) or not all(isinstance(file, str) for file in files.values()):
            raise UserError(f"{index}: weight_map: should be an object of file names")
        every: Tensors = {}
        for file in sorted(set(files.values())):
            if Path(file).name != file:
                raise UserError(f"{index}: weight_map: {file!r} is not in the folder")
            every |= read_tensors(folder / file)
        return every
    for file in (WEIGHTS, "pytorch_model.bin"):
        if (folder / file).is_file():
            return read_tensors(folder / file)
    raise UserError(f"there is no {WEIGHTS} in {folder}")


def _without_prefix(tensors: Tensors) -> tuple[Tensors, list[str]]:
    """The names without the tower's prefix, and without what a classifier does not need: what that was, in words."""
    before = (re.fullmatch(r"(.*?)embeddings\.(?!token_)[\w.]+", name) for name in tensors)
    ((prefix, _),) = Counter(match[1] for match in before if match).most_common(1) or [("", 0)]  # where one is misspelt
    result, notes = {}, []
    for name, tensor in tensors.items():
        name = name.removeprefix(prefix)
        note = next((note for pattern, note in names.LEFT_OUT.items() if re.fullmatch(pattern, name)), None)
        if note is None:
            result[name] = tensor
        elif note not in notes:
            notes.append(note)
    return result, notes


def _to_ours(tensors: Tensors, variant: Variant, architecture: Architecture, what: str) -> tuple[Tensors, Architecture]:
    """What more than a name is different."""
    tensors, dim = dict(tensors), architecture.embed_dim
    for kind in ("weight", "bias"):
        if (joined := tensors.pop(f"attn_pool.in_proj.{kind}", None)) is not None:
            tensors |= {f"attn_pool.q.{kind}": joined[:dim], f"attn_pool.kv.{kind}": joined[dim:]}
    if architecture.no_embed_class and {"cls_token", "pos_embed"} <= tensors.keys():  # as timm keeps it
        positions = tensors["pos_embed"]
        if positions.ndim != 3 or positions.shape[2] != dim or tensors["cls_token"].shape != (1, 1, dim):
            raise UserError(
                f"{what}: cls_token {tensors['cls_token'].shape} and position_embeddings {positions.shape} should have "
                f"the width {dim}"
            )
        tensors["cls_token"] = tensors["cls_token"] + positions[:, :1]
        tensors["pos_embed"] = positions[:, 1:]
    tensors, fields = head_to_ours(tensors, variant, what, dim)
    return tensors, altered(architecture, fields, what) if fields else architecture


def head_to_ours(
    tensors: Tensors, variant: Variant, what: str, dim: int | None = None
) -> tuple[Tensors, Mapping[str, Any]]:
    """A class's head as ours, under our names before and after; and the architecture's fields that it asks for.

    A projection is a head without a bias. DINOv2's reads the class token and the mean of the patches: where half of it
    is zero, it is a head of the other half.

    Args:
        dim: the model's width; None: whatever the head's is.

    Raises:
        UserError: where it has another width than DINOv2's.
    """
    if "head.weight" not in tensors:
        return tensors, {}
    head = tensors["head.weight"]
    if variant.head is names.PROJECTION:
        tensors = tensors | {"head.bias": np.zeros(len(head), np.float32)}
    if not variant.reads_both:
        return tensors, {}
    dim = dim or head.shape[-1] // 2
    if head.ndim != 2 or head.shape[1] != 2 * dim:
        raise UserError(f"{what}: classifier.weight should have {2 * dim} inputs, not the shape {head.shape}")
    if not head[:, dim:].any():
        return tensors | {"head.weight": head[:, :dim]}, {"global_pool": "token"}
    if not head[:, :dim].any():
        return tensors | {"head.weight": head[:, dim:]}, AVERAGE
    return tensors, {"global_pool": "token_avg"}


def head_to_theirs(tensors: Tensors, variant: Variant, architecture: Architecture) -> Tensors:
    """The inverse of ``head_to_ours``, under the class's own names: whatever of the tensors is a head's."""
    head = {name: tensor for name, tensor in tensors.items() if is_head(name)}
    if variant.head is names.PROJECTION:
        del head["head.bias"]
    if variant.reads_both and architecture.global_pool != "token_avg":
        dim = architecture.embed_dim
        before = dim if architecture.global_pool == "avg" else 0
        head["head.weight"] = np.pad(head["head.weight"], ((0, 0), (before, dim - before)))
    return from_timm(head, variant.head)


def _to_theirs(tensors: Tensors, variant: Variant, architecture: Architecture) -> Tensors:
    """The inverse of ``_to_ours`` and of the names; a class token that has its position in it has zero for one."""
    tensors, dim = dict(tensors), architecture.embed_dim
    for kind in ("weight", "bias"):
        if f"attn_pool.q.{kind}" in tensors:
            parts = [tensors.pop(f"attn_pool.{part}.{kind}") for part in ("q", "kv")]
            tensors[f"attn_pool.in_proj.{kind}"] = np.concatenate(parts)
    if architecture.no_embed_class:
        tensors["pos_embed"] = np.pad(tensors["pos_embed"], ((0, 0), (1, 0), (0, 0)))
    if variant.unused.startswith("norm"):
        tensors |= {"norm.weight": np.ones(dim, np.float32), "norm.bias": np.zeros(dim, np.float32)}
    tower = from_timm({n: t for n, t in tensors.items() if not is_head(n)}, variant.pairs(architecture))
    tower |= {name: np.zeros(shape, np.float32) for name, shape in variant.beside(architecture).items()}
    head = head_to_theirs(tensors, variant, architecture)
    return {f"{variant.prefix}{name}": tensor for name, tensor in tower.items()} | head


def _numbered(labels: Any) -> bool:
    return isinstance(labels, dict) and all(str(key).isdecimal() for key in labels)

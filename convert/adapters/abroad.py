"""Adapters written for the models of other libraries: for transformers' classes and torchvision's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from convert.adapters.foreign import translated, written
from convert.adapters.formats import FORMATS
from convert.adapters.namings import TORCHVISION, TRANSFORMERS, Naming
from convert.adapters.peft import CONFIG, PREFIX, ROOT, WEIGHTS, Adapter, common, shareable
from convert.files import read_json, read_safetensors, write_json, write_safetensors
from convert.layouts import torchvision, transformers
from mlx_peft.config.quantization import is_scale
from mlx_peft.config.tokens import is_router
from mlx_peft.core.border import Tensors
from mlx_peft.core.errors import UserError
from mlx_peft.core.sums import SUMS
from mlx_peft.core.writing import new_folder
from mlx_peft.vit.architecture import Architecture
from mlx_peft.vit.parameters import is_head

Choice = Callable[[Architecture, Tensors], Naming]
"""The naming of the class that a model is, by its architecture and its head. Raises UserError where there is none."""


def of_transformers(architecture: Architecture, head: Tensors) -> Naming:
    """transformers' names of today, version 5's."""
    return _of_transformers(architecture, head)[0]


def of_transformers_4(architecture: Architecture, head: Tensors) -> Naming:
    """The names that version 4 had."""
    return _of_transformers(architecture, head)[1]


def _of_transformers(architecture: Architecture, head: Tensors) -> tuple[Naming, Naming]:
    name, _ = transformers.class_for(architecture, head)
    both = TRANSFORMERS.get((name, architecture.mlp_layer == "swiglu_packed"))
    if both is None:
        raise UserError(
            f"adapters over transformers' {name} are not written: one over timm's model is", arguments=("to",)
        )
    return both


def of_torchvision(architecture: Architecture, head: Tensors) -> Naming:
    """torchvision's."""
    torchvision.must_fit(architecture)
    return TORCHVISION


def write_for(choice: Choice, folder: Path, adapter: Adapter, architecture: Architecture) -> list[str]:
    """Writes an adapter over another library's model of an architecture, whole.

    Returns:
        Notes for the user.

    Raises:
        UserError: where the library has no such model or layer, the method is another adapter there, or the folder
            cannot be written.
    """
    layout, adapter = FORMATS[type(adapter.method)], shareable(adapter)
    if adapter.method.own_codes:
        raise UserError(
            f"an adapter of the method {adapter.method.name} that has codes of its own has them for the layers of "
            "timm's models, and cannot be put on another library's",
            arguments=("to",),
        )
    naming = choice(architecture, adapter.tensors)
    own = {name: tensor for name, tensor in adapter.tensors.items() if not (is_scale(name) or is_router(name))}
    if layout.from_peft is None:
        raise UserError(f"Hugging Face PEFT has no method {adapter.method.name!r}", arguments=("to",))
    own = layout.apart(adapter.method, own) if naming.separate else own
    config, tensors = naming.completed(*layout.pack(adapter.method, own))
    head = naming.head_to_theirs({name: tensor for name, tensor in own.items() if is_head(name)}, architecture)
    config, tensors = written(config, tensors, naming, head)
    _save(folder, common(adapter, layout) | config, tensors)
    notes = [f"{folder}: for {naming.title}; class names and preprocessing are not in it"]
    if adapter.qat is not None:
        notes.append(f"{folder}: it was trained through codes, of which Hugging Face PEFT knows nothing")
    return notes


def rename(folder: Path, out: Path, naming: Naming, architecture: Architecture) -> None:
    """Writes an adapter of a folder under other names of the same class. Raises UserError as reading it does."""
    stored, _ = read_safetensors(folder / WEIGHTS)
    tensors = {name.removeprefix(PREFIX): tensor for name, tensor in stored.items()}
    found = translated(read_json(folder / CONFIG), tensors, folder)
    heads = {name: tensor for name, tensor in found.tensors.items() if is_head(name)}
    _save(out, *written(found.config, found.tensors, naming, naming.head_to_theirs(heads, architecture)))


def _save(folder: Path, config: dict[str, Any], tensors: Tensors) -> None:
    with new_folder(folder, replaceable={CONFIG, WEIGHTS, SUMS}) as new:
        write_json(new / CONFIG, dict(sorted(config.items())))
        stored = {name if name.startswith(ROOT) else f"{PREFIX}{name}": tensor for name, tensor in tensors.items()}
        write_safetensors(new / WEIGHTS, stored, {"format": "pt"})

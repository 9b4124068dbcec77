"""A checkpoint from anywhere: its kind is recognised, and it comes under timm's names with what is known about it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from convert.canonical import canonical
from convert.checkpoint import Checkpoint
from convert.files import read_json, read_tensors
from convert.fit import class_names, must_be_sound
from convert.kinds import kind_of
from convert.layouts import transformers
from convert.layouts.layout import Asked, Reading
from convert.layouts.naming import must_agree, nearest
from convert.layouts.npz import read_npz
from convert.layouts.recognise import recognise
from convert.timm.config import CONFIG, WEIGHTS
from convert.timm.read import from_folder, from_tensors
from mlx_peft.core.errors import UserError
from mlx_peft.vit.registry import find, names


def open_path(path: Path, asked: Asked, part: str | None = None) -> Checkpoint:
    """A file or folder of any layout.

    Args:
        asked: the model's name and fields, as far as the user gives them.
        part: which model is meant, in a file of several.

    Raises:
        UserError: where it is missing, damaged, of an unknown kind, or leaves open what a model is.
    """
    if not path.is_dir():
        return _file(path, asked, part)
    config = path / CONFIG
    if not config.is_file() and (path / WEIGHTS).is_file():
        return _file(path / WEIGHTS, asked, part)
    if not transformers.is_folder(read_json(config)):
        return from_folder(path, asked.name, str(path))
    return _known(transformers.read(path), "transformers", path, asked)


def _file(path: Path, asked: Asked, part: str | None) -> Checkpoint:
    tensors = read_npz(path) if kind_of(path) == "npz" else read_tensors(path)
    layout, tensors, notes = recognise(tensors, path, part)
    if layout is None:
        checkpoint = from_tensors(tensors, path, asked.name)
    else:
        checkpoint = _known(layout.read(tensors, path, asked), layout.name, path, asked)
    return replace(checkpoint, notes=(*notes, *checkpoint.notes))


def _known(reading: Reading, layout: str, path: Path, asked: Asked) -> Checkpoint:
    """What a foreign layout says, under a name of timm's: the user's, or the nearest."""
    name, architecture = asked.name, reading.architecture
    if name is None or name.partition(".")[0] not in names():
        name = nearest(architecture)
    else:
        must_agree(name, architecture, str(path), asked.args)
        find(name)
    if reading.preprocessing is None:
        raise UserError(
            f"{path}: it does not say how images are to be normalised: put a preprocessor_config.json beside it"
        )
    tensors, notes = canonical(reading.tensors, architecture.family)
    must_be_sound(tensors, architecture, None, path)
    return Checkpoint(
        name=name.partition(".")[0],
        source=str(path),
        architecture=architecture,
        preprocessing=reading.preprocessing,
        resampling=find(name).resampling,
        tensors=tensors,
        notes=(*reading.notes, *notes),
        classes=class_names(reading.classes, tensors, f"{path}: id2label"),
        layout=layout,
        described=layout == "transformers",
        task=reading.task,
    )

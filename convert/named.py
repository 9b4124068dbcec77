"""A checkpoint by what a person calls it: a file or a folder, a name of timm's, or a repository of the hub."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from convert.checkpoint import Checkpoint
from convert.hub import download
from convert.kinds import SUFFIXES
from convert.layouts import torchvision, transformers
from convert.layouts.layout import Asked
from convert.layouts.processor import CONFIG as PROCESSOR
from convert.open import open_path
from convert.timm.read import from_hub
from mlx_peft.config.weights import on_hub
from mlx_peft.core.errors import Command, UserError
from mlx_peft.vit.registry import find, meant, names


def open_named(source: str, path: Path, asked: Asked, part: str | None = None) -> tuple[Path, Checkpoint]:
    """A checkpoint, and where its files are: a repository's in the cache; as it was named where timm itself has it.

    Args:
        source: as it was written; path: the same as a path.
        asked: what the user says of it that it does not say.
        part: which model is meant, in a file of several.

    Raises:
        UserError: where it is none of these, cannot be had, or leaves open what it is.
    """
    if path.exists() or path.suffix in SUFFIXES:
        return path, open_path(path, asked, part)
    name = timm_name(source)
    if name is not None:
        return path, from_hub(name)
    if on_hub(source):
        try:
            folder = repository(source)
        except UserError as error:
            raise UserError(f"{source}: no such file or folder here, and of the hub: {error}") from error
        return folder, replace(open_path(folder, asked, part), source=source)
    raise UserError(
        f"{source!r} is neither a file or folder nor a model of timm's{meant(source)}; a repository of the hub is "
        "named OWNER/REPOSITORY",
        command=Command("see", ("ls", "models")),
    )


def timm_name(source: str) -> str | None:
    """The name of timm's that is meant, with its owner or without; None where none is."""
    name = source.removeprefix("timm/")
    return name if "/" not in name and name.partition(".")[0] in names() else None


def known(name: str) -> None:
    """Raises UserError for the name of a model that is neither timm's nor one of torchvision's, which tell weights of
    the same shapes apart."""
    if name.partition(".")[0] not in torchvision.WEIGHTS:
        find(name)


def repository(name: str) -> Path:
    """What the cache has of a hub's repository: its folder, in transformers' or timm's layout, or its weights alone."""
    weights = download(name, transformers.WEIGHTS)
    try:
        folder = download(name, transformers.CONFIG).parent
    except UserError:  # mlx-image's have none
        return weights
    with suppress(UserError):  # timm's have none, and of transformers' it will be said that it is missing
        download(name, PROCESSOR)
    return folder

"""The weights that an experiment names, opened as they are found."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from convert.checkpoint import Checkpoint
from convert.files import listed
from convert.kinds import SUFFIXES
from convert.layouts.layout import Asked
from convert.layouts.naming import must_agree
from convert.named import open_named, timm_name
from convert.timm.read import from_folder, from_hub
from mlx_peft.config.schema import Model
from mlx_peft.core.errors import UserError, suggest
from mlx_peft.core.packaged import packaged
from mlx_peft.core.sought import sought
from mlx_peft.vit.registry import find, meant

Opener = Callable[[Model], Checkpoint]
"""What finds the weights that an experiment names. Raises UserError where there are none."""


def open_weights(model: Model) -> Checkpoint:
    """The weights of the hub, of this package, or of a file or folder; or none yet, where they are to be drawn.

    Raises:
        UserError: where they are unknown, missing or damaged.
    """
    if model.weights == "timm":
        return from_hub(model.name)
    if model.weights == "none":
        entry = find(model.name)
        return Checkpoint(model.name, "random", entry.architecture, entry.preprocessing, entry.resampling)
    if model.weights.startswith("package:"):
        return _shipped(model)
    path, asked = Path(os.path.expanduser(model.weights)), Asked(model.name, model.args)
    with sought(path, "model.weights"):
        if model.is_local and not path.exists() and path.suffix not in SUFFIXES:
            near = suggest(model.weights, ["timm", "none"]) or meant(model.weights)
            raise UserError(
                f"model.weights: {model.weights!r} is neither a file nor a folder{near} (timm, none, package:NAME, "
                "OWNER/NAME of the hub, a file or a folder)"
            )
        _, checkpoint = open_named(model.weights, path, asked)
    if timm_name(model.weights) is not None:
        must_agree(model.name, checkpoint.architecture, model.weights, model.args)
    return checkpoint


def _shipped(model: Model) -> Checkpoint:
    name, folder = model.weights.removeprefix("package:"), packaged("models")
    known = sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    if name not in known:
        raise UserError(
            f"model.weights: there is no model {name!r} in this package{suggest(name, known)} "
            f"({listed(known) or 'none'})"
        )
    return from_folder(folder / name, model.name, model.weights)

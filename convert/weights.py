"""The weights that an experiment names, opened as they are found."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from convert.checkpoint import Checkpoint
from convert.files import listed
from convert.layouts.layout import Asked
from convert.open import open_path
from convert.timm.read import from_folder, from_hub
from mlx_peft.config.schema import Model
from mlx_peft.core.errors import UserError, suggest
from mlx_peft.core.packaged import packaged
from mlx_peft.vit.registry import find

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
    path = Path(os.path.expanduser(model.weights))
    if path.exists() or path.suffix:
        return open_path(path, Asked(model.name, model.args))
    raise UserError(
        f"model.weights: {model.weights!r} is neither a file nor a folder{suggest(model.weights, ['timm', 'none'])} "
        "(timm, none, package:NAME, a file or a folder)"
    )


def _shipped(model: Model) -> Checkpoint:
    name, folder = model.weights.removeprefix("package:"), packaged("models")
    known = sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    if name not in known:
        raise UserError(
            f"model.weights: there is no model {name!r} in this package{suggest(name, known)} "
            f"({listed(known) or 'none'})"
        )
    return from_folder(folder / name, model.name, model.weights)

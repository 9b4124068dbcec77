"""``cp``: a recipe to edit."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from mlx_peft.cli.cat import Recipe
from mlx_peft.cli.common import AsJson, echo, echo_json
from mlx_peft.core.errors import UserError


def cp(
    recipe: Recipe,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A file, or a folder to put it in.")] = Path("."),
    as_json: AsJson = False,
) -> None:
    """Copy a recipe, its parts put together, to edit it."""
    from mlx_peft.config import recipes
    from mlx_peft.core.writing import write_whole

    text = recipes.text(recipe)
    file = out / f"{recipe}.yaml" if out.is_dir() else out
    if os.path.lexists(file):
        raise UserError(f"{file} is already there: choose another name, or remove it")
    write_whole(file, text.encode())
    if as_json:
        echo_json({"recipe": recipe, "file": str(file)})
    else:
        echo(file)

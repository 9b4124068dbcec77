"""``cp``: a recipe to edit."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mlx_peft.cli.cat import Recipe
from mlx_peft.core.errors import UserError


def cp(
    recipe: Recipe,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A file, or a folder to put it in.")] = Path("."),
) -> None:
    """Copy a recipe, its parts put together, to edit it."""
    from mlx_peft.config import recipes

    text = recipes.text(recipe)
    file = out / f"{recipe}.yaml" if out.is_dir() else out
    try:
        with file.open("x", encoding="utf-8") as copy:
            copy.write(text)
    except FileExistsError:
        raise UserError(f"{file} is already there: choose another name, or remove it") from None
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}") from None
    typer.echo(file)

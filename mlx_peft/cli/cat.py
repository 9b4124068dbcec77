"""``cat``: a recipe to read."""

from __future__ import annotations

from typing import Annotated

import typer

from mlx_peft.cli.common import echo_file

Recipe = Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe's name: see `ls recipes`.", show_default=False)]


def cat(recipe: Recipe) -> None:
    """Show a recipe, its parts put together."""
    from mlx_peft.config import recipes

    echo_file(recipes.text(recipe))

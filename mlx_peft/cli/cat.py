"""``cat``: a recipe to read."""

from __future__ import annotations

from typing import Annotated

import typer

from mlx_peft.cli import completing
from mlx_peft.cli.common import AsJson, echo_file, echo_json

Recipe = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE",
        help="A recipe's name: see `ls recipes`.",
        show_default=False,
        autocompletion=completing.readable,
    ),
]


def cat(recipe: Recipe, as_json: AsJson = False) -> None:
    """Show a recipe, its parts put together."""
    from mlx_peft.config import recipes, yaml_io

    text = recipes.text(recipe)
    if as_json:
        echo_json(yaml_io.parse(text, recipe).values)
    else:
        echo_file(text)

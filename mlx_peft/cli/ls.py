"""``ls``: what there is to choose from."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator
from typing import Annotated, Literal, get_args

import typer

from mlx_peft.cli.common import AsJson, echo_json
from mlx_peft.config.errors import UserError, suggest

Kind = Literal["models", "methods", "datasets", "recipes"]


def ls(
    kind: Annotated[Kind, typer.Argument(metavar="|".join(get_args(Kind)), show_default=False)],
    pattern: Annotated[
        str, typer.Argument(metavar="PATTERN", help="A part of the name, or a pattern: 'vit_*_224*'.")
    ] = "",
    as_json: AsJson = False,
) -> None:
    """List models, methods, data sets or recipes."""
    entries = dict(LISTS[kind]())
    wanted = pattern.lower() if set("*?[") & set(pattern) else f"*{pattern.lower()}*"
    found = {name: text for name, text in entries.items() if fnmatch.fnmatchcase(name.lower(), wanted)}
    if as_json:
        echo_json([{"name": name, "description": text} for name, text in found.items()])
    elif found:
        width = max(map(len, found))
        typer.echo("\n".join(f"{name:<{width}}  {text}".rstrip() for name, text in found.items()))
    else:
        raise UserError(f"no {kind} match {pattern!r}{suggest(pattern, entries)}")


def models() -> Iterator[tuple[str, str]]:
    from mlx_peft.config import registry

    for name in registry.names():
        yield name, ", ".join(registry.tags(name))


def methods() -> Iterator[tuple[str, str]]:
    from mlx_peft.config.methods import Method

    for method in get_args(get_args(Method)[0]):
        yield method.model_fields["name"].default, method.__doc__.partition("\n")[0]


def datasets() -> Iterator[tuple[str, str]]:
    from mlx_peft.data import REGISTRY

    for name, entry in REGISTRY.items():
        yield name, entry.description


def recipes() -> Iterator[tuple[str, str]]:
    from mlx_peft.config import recipes

    for name in recipes.names():
        yield name, recipes.description(name)


LISTS = {"models": models, "methods": methods, "datasets": datasets, "recipes": recipes}

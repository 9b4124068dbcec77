"""``ls``: what there is to choose from."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator
from typing import Annotated, Any, Literal, get_args

import typer

from mlx_peft.cli import completing
from mlx_peft.cli.common import AsJson, echo, echo_json
from mlx_peft.cli.ls_models import Wanted, families, models, narrowed, nothing, where
from mlx_peft.core.errors import UserError, suggest, told_of

Kind = Literal["models", "families", "methods", "tokens", "datasets", "recipes", "suites"]

FamilyNames = Annotated[
    list[str] | None,
    typer.Option(
        "--family",
        metavar="NAME",
        help="Only models of this family: see `ls families`.",
        show_default=False,
        autocompletion=completing.families,
    ),
]
Sizes = Annotated[
    list[str] | None,
    typer.Option(
        "--size",
        metavar="SIZE",
        help="Only models of this size: a word of their names (tiny, base, ...), or parameters: 5M-30M, -30M, 1B-.",
        show_default=False,
    ),
]
Licences = Annotated[
    list[str] | None,
    typer.Option(
        "--licence",
        metavar="NAME",
        help="Only models with weights under this licence, or a pattern: 'cc-*'; unknown: none is stated.",
        show_default=False,
    ),
]
ImageSizes = Annotated[
    list[int] | None,
    typer.Option(
        "--image-size",
        min=1,
        metavar="PIXELS",
        help="Only models with weights for images of this size.",
        show_default=False,
    ),
]
OnHub = Annotated[
    bool | None,
    typer.Option(
        "--weights/--no-weights",
        help="Only models with weights on the hub, or only models without.",
        show_default=False,
    ),
]
On = Annotated[
    str,
    typer.Option(
        "--on",
        metavar="MODEL",
        help="Of recipes: say how many numbers the method of each trains on this model, without the head.",
        show_default=False,
        autocompletion=completing.models,
    ),
]


def ls(
    kind: Annotated[Kind, typer.Argument(metavar="|".join(get_args(Kind)), show_default=False)],
    pattern: Annotated[
        str, typer.Argument(metavar="PATTERN", help="A part of the name, or a pattern: 'vit_*_224*'.")
    ] = "",
    family: FamilyNames = None,
    size: Sizes = None,
    licence: Licences = None,
    image_size: ImageSizes = None,
    weights: OnHub = None,
    on: On = "",
    as_json: AsJson = False,
) -> None:
    """List models, families, methods, data sets, recipes and more.

    A line for each. Of a model it says: parameters without the head, image size, and the families, licences and tags
    of its weights. Options narrow the list of models down: one that is given several times asks for any of its values,
    and all options must fit. Of a family: how many models and weights it has, their licences, and where they were
    first published. Of a method: whether it can be merged into a plain model, whether PEFT reads its adapters, whether
    a batch may mix them, and whether several can be combined into one. Of what makes tokens fewer: its options, and
    whether the model must have a class token. Of a data set: its variants (protocols, partitions, sizes), of which the
    first is the default, with the number of their images; with --json also what each variant is, and where the set is
    to be had.
    """
    entries = {entry["name"]: entry for entry in LISTS[kind]()}
    asked = Wanted(
        family=tuple(family or ()),
        size=tuple(size or ()),
        licence=tuple(licence or ()),
        image_size=tuple(image_size or ()),
        weights=weights,
    )
    if asked.options and kind != "models":
        raise UserError(f"{' '.join(asked.words)}: only models are asked for so, and not {kind}")
    wanted = pattern.lower() if set("*?[") & set(pattern) else f"*{pattern.lower()}*"
    named = [entry for name, entry in entries.items() if fnmatch.fnmatchcase(name.lower(), wanted)]
    if on and kind != "recipes":
        raise UserError(f"--on: only what recipes train is counted so, and not {kind}")
    found = [counted(entry, on) for entry in named] if on else narrowed(named, asked)
    if as_json:
        echo_json(found)
    elif found:
        facts = [heading for key, heading in HEADINGS.items() if key in found[0]]
        rows = [["name", *facts, LAST_HEADING.get(kind, "description")]] * bool(facts) + [
            cells(entry) for entry in found
        ]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            echo("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())
        for line in where(found, asked) if kind == "models" else ():
            echo(line, err=True)
    elif named:
        raise UserError(nothing(named, pattern, asked))
    else:
        raise UserError(f"no {kind} match {pattern!r}{suggest(pattern, entries)}")


def cells(entry: dict[str, Any]) -> list[str]:
    """An entry as a line's columns."""
    return [entry["name"], *(cell(key, value) for key, value in entry.items() if key in HEADINGS), entry["description"]]


def cell(key: str, value: Any) -> str:
    """A fact for a person."""
    if key == "variants":
        return variants(value)
    if value is None or isinstance(value, bool):
        return {True: "yes", False: "no", None: "any"}[value]
    return f"{value:,}" if isinstance(value, int) else value if isinstance(value, str) else ", ".join(value) or "-"


def variants(found: list[dict[str, Any]]) -> str:
    """A data set's variants: of those with the same numbers of images, the names together."""
    names: dict[str, list[str]] = {}
    for variant in found:
        sizes = " + ".join(f"{size:,} {split}" for split, size in variant["sizes"].items())
        names.setdefault(sizes, []).append(variant["name"])
    return "; ".join(f"{', '.join(alike)}: {sizes}" for sizes, alike in names.items()) or "data.split's"


HEADINGS = {
    "parameters": "parameters",
    "image_size": "pixels",
    "models": "models",
    "tags": "weights",
    "families": "families",
    "licenses": "licences",
    "origin": "first published at",
    "merges": "merges",
    "in_peft": "PEFT reads it",
    "mixes": "a batch may mix it",
    "combines": "combines",
    "options": "options",
    "needs_class": "needs a class token",
    "classes": "classes",
    "variants": "variants",
    "licence": "licence",
}
"""These facts may be known of an entry; the heading over each."""

LAST_HEADING = {"models": "tags"}
"""The heading over the last column, where that is no description."""


def methods() -> Iterator[dict[str, Any]]:
    from mlx_peft.config.methods import Method

    for method in get_args(get_args(Method)[0]):
        yield {
            "name": method.model_fields["name"].default,
            "description": method.__doc__.partition("\n")[0],
            "merges": method.unmerged is None,
            "in_peft": method.in_peft,
            "mixes": method.unmixed is None,
            "combines": method.uncombined is None,
        }


def tokens() -> Iterator[dict[str, Any]]:
    from mlx_peft.config.tokens import Reducer

    for reducer in get_args(get_args(Reducer)[0]):
        options = {key: field for key, field in reducer.model_fields.items() if key != "name"}
        yield {
            "name": get_args(reducer.model_fields["name"].annotation)[0],
            "options": [
                f"{field.alias or key}={list(field.default) if isinstance(field.default, tuple) else field.default!s}"
                for key, field in options.items()
            ],
            "needs_class": reducer.needs_class is not None,
            "description": reducer.__doc__.partition("\n")[0],
        }


def datasets() -> Iterator[dict[str, Any]]:
    from mlx_peft.data import REGISTRY

    for name, entry in REGISTRY.items():
        yield {
            "name": name,
            "classes": entry.classes,
            "variants": [
                {"name": variant.name, "description": variant.description, "sizes": dict(variant.sizes)}
                for variant in entry.variants
                if entry.published
            ],
            "licence": entry.licence,
            "description": entry.description,
            "source": entry.source,
        }


def recipes() -> Iterator[dict[str, Any]]:
    from mlx_peft.config import recipes

    for name in recipes.names():
        yield {"name": name, "description": recipes.description(name)}


def counted(entry: dict[str, Any], model: str) -> dict[str, Any]:
    """A recipe with how much its method trains on a model."""
    from mlx_peft.adaptation.adapter import trained_count
    from mlx_peft.config import files, recipes
    from mlx_peft.vit.registry import find

    architecture, experiment = find(model).architecture, files.load(recipes.find(entry["name"]))
    with told_of(entry["name"]):
        count = trained_count(experiment.method, architecture, experiment.quantize)
    return {"name": entry["name"], "parameters": count, "description": entry["description"]}


def suites() -> Iterator[dict[str, Any]]:
    from mlx_peft.config import recipes

    for name in recipes.names("suite"):
        yield {"name": name, "description": recipes.description(name, "suite")}


LISTS = {
    "models": models,
    "families": families,
    "methods": methods,
    "tokens": tokens,
    "datasets": datasets,
    "recipes": recipes,
    "suites": suites,
}

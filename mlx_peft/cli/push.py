"""``push``: an adapter or a model to the Hugging Face hub, with its card."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mlx_peft.cli.common import AdapterName, AsJson, Backend, Weights, backend_of, echo, echo_file, echo_json
from mlx_peft.core.text import printable

if TYPE_CHECKING:
    from mlx_peft.artifacts.share import Parcel


def push(
    ctx: typer.Context,
    source: Annotated[
        Path,
        typer.Argument(
            metavar="RUN_OR_FOLDER", help="A finished run, an adapter, or the folder of a model.", show_default=False
        ),
    ],
    repository: Annotated[
        str, typer.Argument(metavar="OWNER/NAME", help="The repository; made where it is missing.", show_default=False)
    ],
    merged: Annotated[bool, typer.Option("--merged", help="Of a run: send the merged model, not the adapter.")] = False,
    private: Annotated[bool, typer.Option("--private", help="Make a private repository.")] = False,
    revision: Annotated[
        str | None, typer.Option(metavar="BRANCH", help="The branch to write to.", show_default="main")
    ] = None,
    adapter: AdapterName = None,
    weights: Weights = None,
    backend: Backend = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the card; send nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Send an adapter or a model to the Hugging Face hub, with a card.

    The token is HF_TOKEN, or that of `hf auth login`.
    """
    from convert.repository import checked_name, upload
    from mlx_peft.artifacts.share import packed
    from mlx_peft.report.card import card

    checked_name(repository)
    with packed(source, backend_of(ctx, backend), name=adapter, merged=merged, weights=weights) as parcel:
        text = card(parcel, repository, commands(parcel, repository))
        for note in parcel.notes:
            echo(note, err=True)
        files: dict[str, Path | bytes] = {**parcel.files, "README.md": text.encode()}
        address = None if dry_run else upload(repository, files, private=private, revision=revision)
        if as_json:
            facts = {"repository": repository, "kind": parcel.kind, "files": sorted(files), "notes": [*parcel.notes]}
            echo_json({**facts, "commit": address, "card": text})
        elif address is None:
            echo_file(text)
        else:
            echo(address)


def commands(parcel: Parcel, repository: str) -> str:
    """What whoever reads the card types: where the base is a file, with the options that say where it is."""
    model = parcel.model
    if parcel.kind == "model" or (model and not model.is_local):
        base = ""
    elif model is None:
        base = " --model NAME"
    else:
        name, weights = (shlex.quote(printable(value)) for value in (model.name, model.weights))
        base = f" --model {name} --weights {weights}"
    return f"mlx-peft pull {repository} model/\nmlx-peft predict model/ image.jpg{base}"

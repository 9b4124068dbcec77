"""``pull``: an adapter or a model from the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mlx_peft.cli.common import echo


def pull(
    repository: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="The repository.", show_default=False)],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to write.", show_default=False)],
    revision: Annotated[
        str | None, typer.Option(metavar="REVISION", help="A branch, a tag or a commit.", show_default="main")
    ] = None,
) -> None:
    """Fetch an adapter or a model from the Hugging Face hub.

    Nothing but safetensors, JSON and text is fetched.
    """
    from mlx_peft.artifacts import share

    commit = share.pull(repository, out, revision)
    for file in sorted(out.iterdir()):
        echo(f"{file}  {file.stat().st_size:,} bytes")
    echo(f"commit {commit}")

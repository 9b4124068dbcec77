"""``pull``: an adapter or a model from the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mlx_peft.cli.common import AsJson, echo, echo_files, echo_json, files_in


def pull(
    repository: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="The repository.", show_default=False)],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to write.", show_default=False)],
    revision: Annotated[
        str | None, typer.Option(metavar="REVISION", help="A branch, a tag or a commit.", show_default="main")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Fetch an adapter or a model from the Hugging Face hub.

    Nothing but safetensors, JSON and text is fetched.
    """
    from mlx_peft.artifacts import share

    commit = share.pull(repository, out, revision)
    if as_json:
        echo_json({"repository": repository, "commit": commit, "out": str(out), "files": files_in(out)})
        return
    echo_files(out)
    echo(f"commit {commit}")

"""``report``: finished runs, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mlx_peft.cli.common import AsJson, echo, echo_file, echo_json
from mlx_peft.core.text import printable

if TYPE_CHECKING:
    from mlx_peft.report.gather import Damaged, FinishedRun
    from mlx_peft.report.study import Study


def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where the runs lie.", show_default=False)],
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Also write tables, figures and a page here.", show_default=False),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Set the finished runs below a folder side by side.

    A run whose files are damaged is left out and named, and the exit status is then 1.
    """
    from mlx_peft.report import gather, study, vtab
    from mlx_peft.report.columns import row

    found = gather.gathered(folder)
    runs, whole = found.finished, study.examined(found)
    if as_json:
        echo_json([row(run) for run in runs])
    else:
        show(runs, found.damaged, whole)
        for line in vtab.lines(whole.board):
            echo(line)
    if found.unfinished:
        echo(f"left out, not finished: {printable(', '.join(found.unfinished))}", err=True)
    for one in found.damaged:
        echo(f"left out, damaged: {printable(one.name)}: {printable(one.reason)}", err=True)
    if out is not None:
        from mlx_peft.report import files

        for path in files.write(found, whole, out, folder.resolve().name):
            echo(path, err=True)
    if found.damaged:
        raise typer.Exit(1)


def show(runs: Sequence[FinishedRun], damaged: Sequence[Damaged] = (), study: Study | None = None) -> None:
    """The tables, as suits standard output: drawn on a terminal, in Markdown elsewhere."""
    from rich.console import Console

    from mlx_peft.report import tables
    from mlx_peft.report.rows import drawn

    console = Console()
    if console.is_terminal:
        for rows in tables.sections(runs, study):
            console.print(drawn(rows))
    else:
        echo_file(tables.markdown(runs, damaged, study))

"""``report``: finished runs, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mlx_peft.cli.common import AsJson, echo_json

if TYPE_CHECKING:
    from mlx_peft.report.gather import Run


def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where the runs lie.", show_default=False)],
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Also write table.md, table.csv and curves.png here.", show_default=False),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Set the finished runs below a folder side by side."""
    from mlx_peft.report import gather, tables, vtab

    runs = gather.finished_runs(folder)
    if as_json:
        echo_json([tables.row(run) for run in runs])
    else:
        show(runs)
        for line in vtab.lines(runs):
            typer.echo(line)
    if unfinished := gather.unfinished_runs(folder):
        typer.echo(f"left out, not finished: {', '.join(map(str, unfinished))}", err=True)
    if out is not None:
        from mlx_peft.report import files

        for path in files.write(runs, out):
            typer.echo(path, err=True)


def show(runs: Sequence[Run]) -> None:
    """The table, as suits standard output: drawn on a terminal, in Markdown elsewhere."""
    from rich.console import Console

    from mlx_peft.report import tables

    console = Console()
    if console.is_terminal:
        console.print(tables.table(runs))
    else:
        typer.echo(tables.markdown(runs), nl=False)

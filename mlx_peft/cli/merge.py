"""``merge``: an adapter into its base."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mlx_peft.cli.common import AdapterName, Backend, ModelName, RunOrAdapter, Weights, backend_of, base_of


def merge(
    ctx: typer.Context,
    run: RunOrAdapter,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to write.", show_default=False)],
    adapter: AdapterName = None,
    model: ModelName = None,
    weights: Weights = "timm",
    backend: Backend = None,
) -> None:
    """Write a run as a plain model, a folder that timm opens."""
    from mlx_peft.engine.load import merge_run

    merge_run(run, out, backend_of(ctx, backend), name=adapter, model=base_of(model, weights))
    for file in sorted(out.iterdir()):
        typer.echo(f"{file}  {file.stat().st_size:,} bytes")
    typer.echo(f'open it with: timm.create_model("local-dir:{out}")')

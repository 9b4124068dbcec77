"""``bench``: how fast a training step is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mlx_peft.cli.common import AsJson, echo_json


def bench(
    model: Annotated[str, typer.Option(metavar="NAME", help="The model to time.")] = "vit_small_patch16_224",
    batch_size: Annotated[int, typer.Option(min=1, help="Images a step.")] = 8,
    rank: Annotated[int, typer.Option(min=1, help="LoRA's rank, on qkv, proj, fc1 and fc2.")] = 8,
    rounds: Annotated[int, typer.Option(min=1, help="Steps of each contender, in turn.")] = 9,
    beside: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE.py", help="A contender of your own: see tests/bench.", show_default=False),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Time a LoRA training step of each backend, and of peft on timm."""
    from mlx_peft.engine import bench

    settings = bench.Settings(model=model, batch_size=batch_size, rank=rank, rounds=rounds)
    report = bench.run(settings, [str(file) for file in beside or []])
    if as_json:
        echo_json(bench.summary(settings, report))
    else:
        typer.echo(bench.table(settings, report))

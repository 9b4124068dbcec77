"""``bench``: how fast a training step is, and ``bench data``: how fast images are read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mlx_peft.cli import completing
from mlx_peft.cli.common import AsJson, echo, echo_json
from mlx_peft.cli.mistakes import GROUP, Answering, AnsweringGroup

app = typer.Typer(cls=AnsweringGroup, invoke_without_command=True, context_settings=GROUP)


@app.callback()
def bench(
    ctx: typer.Context,
    model: Annotated[
        str, typer.Option(metavar="NAME", help="The model to time.", autocompletion=completing.models)
    ] = "vit_small_patch16_224",
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
    if ctx.invoked_subcommand:
        return
    from mlx_peft.checks import bench
    from mlx_peft.report import checks

    settings = bench.Settings(model=model, batch_size=batch_size, rank=rank, rounds=rounds)
    report = bench.run(settings, [str(file) for file in beside or []])
    if as_json:
        echo_json(bench.summary(settings, report))
    else:
        echo(checks.steps(settings, report))


@app.command(cls=Answering)
def data(
    root: Annotated[
        Path, typer.Argument(metavar="IMAGES", help="A folder of images for each class.", show_default=False)
    ],
    image_size: Annotated[int, typer.Option(min=1, help="Pixels.")] = 224,
    batch_size: Annotated[int, typer.Option(min=1, help="Images a batch.")] = 32,
    threads: Annotated[int, typer.Option(min=1, help="Of the pipeline, and workers of the DataLoader.")] = 2,
    rounds: Annotated[int, typer.Option(min=1, help="Of each contender, in turn.")] = 5,
    steps: Annotated[bool, typer.Option(help="Also what 32 px arrays cost a training step of ViT-Tiny.")] = True,
    as_json: AsJson = False,
) -> None:
    """Time the reading of images beside a torch DataLoader."""
    from mlx_peft.checks import bench_data
    from mlx_peft.report import checks

    settings = bench_data.Settings(str(root), image_size, batch_size, threads, rounds)
    speeds = bench_data.throughput(settings)
    shares = bench_data.small_images(rounds=rounds, threads=threads) if steps else []
    if as_json:
        echo_json(bench_data.summary(settings, speeds, shares))
    else:
        echo(checks.images(settings, speeds, shares))

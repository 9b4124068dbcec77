"""``bench``: how fast a training step is; its subcommands: reading images, answering them, with fewer tokens."""

from __future__ import annotations

from dataclasses import asdict, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from mlx_peft.cli import completing
from mlx_peft.cli.bench_tokens import tokens
from mlx_peft.cli.common import AsJson, Busy, check_file, echo, echo_json
from mlx_peft.cli.device import Device
from mlx_peft.cli.mistakes import GROUP, Answering, AnsweringGroup

if TYPE_CHECKING:
    from mlx_peft.checks.bench import Settings, Timing
    from mlx_peft.checks.busy import Others

Models = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME",
        help="A model to time; may be said several times.",
        show_default="vit_small_patch16_224",
        autocompletion=completing.models,
    ),
]
BatchSizes = Annotated[
    list[int] | None, typer.Option(min=1, help="Images a step; may be said several times.", show_default="8")
]
Precisions = Annotated[
    list[str] | None,
    typer.Option(
        metavar="float32|tf32|bfloat16", help="Of the step; may be said several times.", show_default="float32"
    ),
]
Compiled = Annotated[
    Literal["false", "true", "both"],
    typer.Option(metavar="false|true|both", help="Whether torch's step and peft's are compiled, in tables apart."),
]
Only = Annotated[
    list[str] | None,
    typer.Option(
        metavar="mlx|torch|peft", help="Only these; may be said several times.", show_default="all that are there"
    ),
]

COMPILED = {"false": [False], "true": [True], "both": [False, True]}
app = typer.Typer(cls=AnsweringGroup, invoke_without_command=True, context_settings=GROUP)


@app.callback()
def bench(
    ctx: typer.Context,
    model: Models = None,
    batch_size: BatchSizes = None,
    precision: Precisions = None,
    compile: Compiled = "false",
    rank: Annotated[int, typer.Option(min=1, help="LoRA's rank, on qkv, proj, fc1 and fc2.")] = 8,
    rounds: Annotated[int, typer.Option(min=1, help="Steps of each contender, in turn.")] = 9,
    method: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A method to time; may be said several times.", show_default="lora"),
    ] = None,
    only: Only = None,
    beside: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE.py", help="A contender of your own: see tests/bench.", show_default=False),
    ] = None,
    device: Device = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.json", help="Also write what is shared of it: see CONTRIBUTING.", show_default=False
        ),
    ] = None,
    busy: Busy = False,
    as_json: AsJson = False,
) -> None:
    """Time training steps, reading images, answers and fewer tokens.

    Without a command: a training step of each backend, and for LoRA of peft on timm; a table for each model, batch
    size, precision and way to compute.
    """
    if ctx.invoked_subcommand:
        return
    if out is not None:
        check_file("--out", out, (".json",), reads=beside or [])
    from mlx_peft.checks import bench
    from mlx_peft.checks.busy import Others
    from mlx_peft.report import checks

    usual = bench.Settings(
        rank=rank, rounds=rounds, methods=tuple(dict.fromkeys(method or ("lora",))), device=device or "auto",
        only=tuple(only or bench.CONTENDERS),
    )  # fmt: skip
    ways = product(
        model or [usual.model], batch_size or [usual.batch_size], precision or [usual.precision], COMPILED[compile]
    )
    others, found = Others(busy), []
    for name, images, numbers, compiled in ways:
        settings = replace(usual, model=name, batch_size=images, precision=numbers, compile=compiled)
        found.append((settings, bench.run(settings, [str(file) for file in beside or []], others)))
        if not as_json:
            echo(checks.steps(*found[-1], others) + "\n")
    if as_json:
        echo_json(bench.summary(found, others))
    if out is not None:
        _share(out, found, others)


def _share(out: Path, found: list[tuple[Settings, list[Timing]]], others: Others) -> None:
    """Writes what is shared of what was measured."""
    from mlx_peft.checks import devices
    from mlx_peft.core.json_io import to_json
    from mlx_peft.core.writing import write_whole

    write_whole(out, f"{to_json(devices.record(found, others).model_dump(mode='json'))}\n".encode())
    echo(out, err=True)


@app.command(cls=Answering)
def devices(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Files of bench --out.", show_default=False)],
    out: Annotated[
        Path | None, typer.Option(metavar="FILE.md", help="Write the page here, and print none.", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make one table by chip of the files that bench --out has written."""
    if out is not None:
        check_file("--out", out, (".md",))
    from mlx_peft.checks.devices import read_all
    from mlx_peft.core.writing import write_whole
    from mlx_peft.report.devices import page, table

    found = read_all(folder)
    if as_json:
        echo_json({name: record.model_dump(mode="json") for name, record in found.items()})
    if out is not None:
        write_whole(out, page(found).encode())
        echo(out, err=True)
    elif not as_json:
        echo(table(found.values()))


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
    workers: Annotated[bool, typer.Option(help="Also threads and processes, 1 to 16, up to the cores.")] = True,
    busy: Busy = False,
    as_json: AsJson = False,
) -> None:
    """Time the reading of images beside a torch DataLoader, and by threads and by processes."""
    from mlx_peft.checks import bench_data, bench_workers
    from mlx_peft.checks.busy import Others
    from mlx_peft.report import checks
    from mlx_peft.report.workers import workers as table

    settings = bench_data.Settings(str(root), image_size, batch_size, threads, rounds)
    others = Others(busy)
    speeds = bench_data.throughput(settings, others)
    shares = bench_data.small_images(rounds=rounds, threads=threads, others=others) if steps else []
    supplies = bench_workers.supplies(settings, others) if workers else []
    if as_json:
        echo_json(bench_data.summary(settings, speeds, shares, others) | {"workers": [*map(asdict, supplies)]})
    else:
        echo(checks.images(settings, speeds, shares, others))
        if supplies:
            echo(f"\n{table(settings, supplies, shares)}")


@app.command(cls=Answering)
def inference(
    model: Annotated[
        str, typer.Option(metavar="NAME", help="The model to time.", autocompletion=completing.models)
    ] = "vit_small_patch16_224",
    image_size: Annotated[
        list[int] | None, typer.Option(min=1, help="Pixels; may be said several times.", show_default="64")
    ] = None,
    adapters: Annotated[
        list[int] | None,
        typer.Option(min=1, help="How many a batch has; may be said several times.", show_default="1, 8 and 32"),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images a batch.")] = 32,
    rank: Annotated[int, typer.Option(min=1, help="LoRA's rank, on all linear layers.")] = 16,
    rounds: Annotated[int, typer.Option(min=1, help="Batches of each contender, in turn.")] = 5,
    resident: Annotated[int, typer.Option(min=1, help="Adapters in memory, of which a batch has some.")] = 32,
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Only mlx, torch or peft; may be said several times.", show_default="all"),
    ] = None,
    busy: Busy = False,
    as_json: AsJson = False,
) -> None:
    """Time batches that mix adapters beside a merged model, switching, and peft."""
    from mlx_peft.checks import bench_inference
    from mlx_peft.checks.busy import Others
    from mlx_peft.report.inference import inference as tables

    counts = tuple(sorted(set(adapters or (1, 8, 32))))
    others = Others(busy)
    reports = [
        bench_inference.run(
            bench_inference.Settings(model, size, batch_size, rank, counts, rounds, resident), [*(only or ())], others
        )
        for size in image_size or [64]
    ]
    if as_json:
        echo_json(bench_inference.summary(reports, others))
    else:
        echo(tables(reports, others))


app.command(cls=Answering)(tokens)

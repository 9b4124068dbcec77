"""``bench``: how fast a training step is."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from mlx_peft.cli.common import AsJson, echo_json


def bench(
    model: Annotated[str, typer.Option(metavar="NAME", help="The model to time.")] = "vit_small_patch16_224",
    batch_size: Annotated[int, typer.Option(metavar="N", min=1, help="Images in a step.")] = 8,
    rounds: Annotated[int, typer.Option(metavar="N", min=1, help="Steps of each, in turn.")] = 9,
    beside: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="A Python file with a `build`, timed too.", show_default=False),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Time a training step on each backend.

    LoRA, each contender in a process of its own, turn by turn; with peft beside them where it is installed.
    """
    from mlx_peft.config import registry
    from mlx_peft.engine.bench import Settings, run
    from mlx_peft.report.format import MISSING, size

    registry.find(model)
    settings = Settings(model=model, batch_size=batch_size, rounds=rounds)
    timings = run(settings, list(map(str, beside or [])))
    if as_json:
        echo_json({"settings": asdict(settings), "timings": [asdict(timing) for timing in timings]})
        return
    typer.echo(f"{model}, batch {batch_size}, float32, LoRA rank {settings.rank} on {', '.join(settings.targets)}")
    typer.echo(f"{'':<16} {'images/s':>9} {'ratio':>6} {'products':>9} {'saved':>9} {'peak':>9}  version")
    for timing in timings:
        share = MISSING if timing.products_share is None else f"{100 * timing.products_share:.0f} %"
        typer.echo(
            f"{timing.name:<16} {timing.images_per_second:>9.2f} {timing.ratio:>6.2f} {share:>9} "
            f"{size(timing.saved_bytes):>9} {size(timing.peak_bytes):>9}  {timing.version}"
        )
    typer.echo(
        "images/s: at the fastest step; ratio: of a step's time to the first's in the same round, median;\n"
        "products: share of the fastest step that its matrix products alone take; saved: activations kept"
    )

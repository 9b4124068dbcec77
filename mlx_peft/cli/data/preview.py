"""``data preview``: what the model is shown."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mlx_peft.cli.common import AsJson, Config, Overrides, check_apart, check_file, echo, echo_json, read_experiment


def preview(
    ctx: typer.Context,
    config: Config,
    overrides: Overrides = None,
    out: Annotated[Path, typer.Option(metavar="FILE.png", help="Where to draw it.")] = Path("preview.png"),
    count: Annotated[int, typer.Option(min=1, max=400, help="How many images to draw.")] = 24,
    epoch: Annotated[int, typer.Option(min=1, help="Of which epoch.")] = 1,
    as_json: AsJson = False,
) -> None:
    """Draw the images that CONFIG trains on, as the model is shown them."""
    check_file("--out", out)
    experiment = read_experiment(ctx, config, overrides)
    check_apart("--out", out, experiment.data.root)

    from mlx_peft.cli.progress import watch
    from mlx_peft.report.preview import draw
    from mlx_peft.training.preview import preview

    with watch() as progress:
        shown = preview(experiment, count, epoch - 1, progress.opening)
    draw(shown, out)
    if as_json:
        images = [{"classes": image.classes, "weight": image.weight} for image in shown]
        echo_json({"file": str(out), "epoch": epoch, "images": images})
    else:
        echo(out)

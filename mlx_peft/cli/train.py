"""``train``: fine-tune a model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mlx_peft.cli import mistakes
from mlx_peft.cli.common import AsJson, Backend, Config, Overrides, echo, echo_json, read_experiment

if TYPE_CHECKING:
    from mlx_peft.config.schema import Experiment


def train(
    ctx: typer.Context,
    config: Config,
    overrides: Overrides = None,
    backend: Backend = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="Folder of the run; runs/CONFIG/METHOD-BACKEND-SEED if left out."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run.")] = False,
    as_json: AsJson = False,
) -> None:
    """Fine-tune a model as CONFIG says."""
    experiment = read_experiment(ctx, config, overrides, backend)
    run = out or default_run(config, experiment)

    from mlx_peft.cli.output import kept_elsewhere, said_beside
    from mlx_peft.cli.progress import watch
    from mlx_peft.report import evaluation, ranks
    from mlx_peft.report.summary import summary
    from mlx_peft.training.stop import Interrupted
    from mlx_peft.training.train import train

    with said_beside(run / "config.yaml"):
        with watch() as progress:
            progress.note(f"{experiment.method.name} on {experiment.data.name} with {experiment.backend}, in {run}")
            try:
                result = train(experiment, run, resume=resume, progress=progress)
            except Interrupted as stopped:
                progress.note(f"{stopped}; {mistakes.help_line(stopped.command, ctx)}")
                raise typer.Exit(130) from None
        figure, pictures = ranks.write(run), evaluation.write_result(run, result)
        if as_json:
            echo_json(result)
            return
        places = {"adapter": run / "adapter", "ranks": figure, "pictures": pictures}
        with kept_elsewhere():
            echo("\n".join([summary(result), *(f"{name:<8} {place}" for name, place in places.items() if place)]))


def default_run(config: str, experiment: Experiment) -> Path:
    """``runs/quickstart/lora-mlx-0``."""
    return Path("runs") / Path(config).stem / f"{experiment.method.name}-{experiment.backend}-{experiment.seed}"

"""``train``: fine-tune a model."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlx_peft.cli import completing, mistakes
from mlx_peft.cli.common import AsJson, Backend, Overrides, Weights, echo, echo_json, read_experiment
from mlx_peft.cli.device import Device
from mlx_peft.core import threads
from mlx_peft.core.errors import UserError, suggest
from mlx_peft.core.launched import told_once

if TYPE_CHECKING:
    from mlx_peft.config.schema import Experiment


def train(
    ctx: typer.Context,
    config: Annotated[
        str,
        typer.Argument(
            metavar="CONFIG",
            help="A YAML file, or a recipe's name: see `ls recipes`; with --resume, a run.",
            show_default=False,
            autocompletion=completing.recipes,
        ),
    ],
    overrides: Overrides = None,
    backend: Backend = None,
    device: Device = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="Folder of the run; runs/CONFIG/METHOD-BACKEND-SEED-CHANGES if left out."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with a run that was interrupted, or is to have more epochs.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run that is in the folder.")] = False,
    weights: Weights = None,
    as_json: AsJson = False,
) -> None:
    """Fine-tune a model as CONFIG says."""
    chosen = [] if device is None else [f"device={device}"]
    with told_once():
        if resume and overwrite:
            raise UserError("--resume goes on with a run and --overwrite replaces it: choose one")
        source, run = again(config, out, resume)
        experiment = read_experiment(ctx, source, [*(overrides or []), *chosen], backend)
        run = run or default_run(config, experiment, overrides)

    from mlx_peft.cli.output import said_beside
    from mlx_peft.cli.progress import watch
    from mlx_peft.config import recipes
    from mlx_peft.protocols.loading import backend_of
    from mlx_peft.training.progress import Silent
    from mlx_peft.training.stop import Interrupted
    from mlx_peft.training.train import train
    from mlx_peft.training.work import threads_worth

    threads.at_most(threads_worth(experiment))
    with told_once():
        first = backend_of(experiment).world().rank == 0
    with said_beside(run / "config.yaml"):
        with watch() if first else nullcontext(Silent()) as progress:
            progress.note(f"{experiment.method.name} on {experiment.data.name} with {experiment.backend}, in {run}")
            try:
                result = train(
                    experiment, run, resume=resume, overwrite=overwrite, weights=weights,
                    beside=recipes.folder_of(source), progress=progress,
                )  # fmt: skip
            except Interrupted as stopped:
                progress.note(f"{stopped}; {mistakes.help_line(stopped.command, ctx)}")
                raise typer.Exit(130) from None
        if first:
            show(experiment, run, result, as_json)


def show(experiment: Experiment, run: Path, result: dict[str, Any], as_json: bool) -> None:
    """Draws what is drawn of a finished run, and prints what it came to."""
    from mlx_peft.cli.output import kept_elsewhere
    from mlx_peft.report import evaluation, ranks
    from mlx_peft.report.summary import summary
    from mlx_peft.training.tracking import show_end

    figure, pictures = ranks.write(run), evaluation.write_result(run, result)
    show_end(
        experiment, run, result, [*([figure] if figure else []), *(sorted(pictures.glob("*.png")) if pictures else [])]
    )
    if as_json:
        echo_json(result)
        return
    places = {"adapter": run / "adapter", "ranks": figure, "pictures": pictures}
    with kept_elsewhere():
        echo("\n".join([summary(result), *(f"{name:<8} {place}" for name, place in places.items() if place)]))


def again(config: str, out: Path | None, resume: bool) -> tuple[str, Path | None]:
    """The file of the experiment, and the folder of its run: CONFIG may be the folder of a run that goes on."""
    run = Path(config)
    own = run / "config.yaml"
    if not own.is_file():
        if resume:
            must_be_there(config)
        return config, out
    if not resume:
        raise UserError(
            f"{run} is a run, not a configuration: to go on with it, say --resume; to train another like it, name {own}"
        )
    if out is not None and out.absolute() != run.absolute():
        raise UserError(f"{run} goes on in its own folder: leave --out out")
    return str(own), run


def must_be_there(config: str) -> None:
    """Raises UserError where a name to go on with is no configuration's: a run was meant, and none is there."""
    from mlx_peft.config import recipes

    path = Path(config)
    if path.is_file() or path.suffix in (".yaml", ".yml") or config in recipes.names():
        return
    if path.is_dir():
        raise UserError(f"{path} is a folder that holds no run: it has no config.yaml")
    runs = [entry.parent.name for entry in path.parent.glob("*/config.yaml")]
    raise UserError(f"there is no run {path}{suggest(path.name, runs)}")


def default_run(config: str, experiment: Experiment, overrides: list[str] | None) -> Path:
    """``runs/quickstart/lora-mlx-0``, and behind it what of the outcome the command line changed: ``-rank=16``."""
    from mlx_peft.config import files, naming
    from mlx_peft.training.run import FREE, flatten

    told = {*FREE, "method.name", "backend", "seed"} - {"data.root"}
    changes = naming.changes(flatten(files.override(overrides or []).values), told)
    name = f"{experiment.method.name}-{experiment.backend}-{experiment.seed}"
    return Path("runs") / Path(config).stem / "-".join(filter(None, (name, changes)))

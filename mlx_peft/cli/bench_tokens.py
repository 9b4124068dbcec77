"""``bench tokens``: what fewer tokens gain and cost."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from mlx_peft.cli import completing
from mlx_peft.cli.common import AsJson, Backend, Busy, echo, echo_json

if TYPE_CHECKING:
    from mlx_peft.artifacts.reduced import Accuracy
    from mlx_peft.checks.bench_tokens import Settings, Speed
    from mlx_peft.checks.busy import Others
    from mlx_peft.config.schema import Model


Runs = Annotated[
    list[Path] | None,
    typer.Option(
        "--run", metavar="RUN", help="A finished run whose accuracy is measured; may be repeated.", show_default=False
    ),
]


def tokens(
    reducers: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="REDUCER",
            help="'tome r=13'; three rates of each, if left out. See `ls tokens`.",
            show_default=False,
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="The model to time.",
            autocompletion=completing.models,
            show_default="the runs', or vit_small_patch16_224",
        ),
    ] = None,
    image_size: Annotated[int | None, typer.Option(min=1, help="Pixels.", show_default="the model's own")] = None,
    runs: Runs = None,
    split: Annotated[
        Literal["val", "test"], typer.Option(metavar="val|test", help="Images of --run to measure on.")
    ] = "test",
    batch_size: Annotated[int, typer.Option(min=1, help="Images a batch.")] = 16,
    rank: Annotated[int, typer.Option(min=1, help="LoRA's rank, on qkv, proj, fc1 and fc2.")] = 8,
    rounds: Annotated[int, typer.Option(min=1, help="Of each reducer and backend, in turn.")] = 5,
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Also write the table, CSV and the curve.", show_default=False)
    ] = None,
    backend: Backend = None,
    busy: Busy = False,
    as_json: AsJson = False,
) -> None:
    """Time inference and a LoRA training step with fewer tokens.

    With --run also the accuracy: of a run without a reducer under each, of the others under their own.
    """
    from mlx_peft.artifacts.ahead import must_hold_files
    from mlx_peft.artifacts.reduced import accuracies, must_be_seeds
    from mlx_peft.checks import bench_tokens
    from mlx_peft.checks.busy import Others
    from mlx_peft.cli.progress import watch

    if out is not None:
        must_hold_files(out)
    timed = _timed(model, image_size, runs or [])
    settings = bench_tokens.settings_of(
        timed, reducers or bench_tokens.REDUCERS, [backend] if backend else None,
        batch_size=batch_size, rank=rank, rounds=rounds,
    )  # fmt: skip
    must_be_seeds(runs or [], settings.reducers, timed)
    others = Others(busy)
    speeds = bench_tokens.run(settings, others)  # first: a machine that is busy is told of at once
    with watch() as progress:
        found = accuracies(runs or [], settings.reducers, split, watch=progress.opening)
    _tell(settings, speeds, others, found, out, as_json)


def _tell(
    settings: Settings, speeds: list[Speed], others: Others, found: list[Accuracy], out: Path | None, as_json: bool
) -> None:
    from mlx_peft.checks import bench_tokens
    from mlx_peft.report import tokens

    if as_json:
        echo_json(bench_tokens.summary(settings, speeds, others) | {"accuracies": [asdict(one) for one in found]})
    else:
        echo(tokens.table(settings, speeds, others, found))
    if out is not None:
        for path in tokens.write(out, settings, speeds, others, found):
            echo(path, err=True)


def _timed(name: str | None, image_size: int | None, runs: list[Path]) -> Model:
    """The model that is timed."""
    from mlx_peft.config.schema import Model
    from mlx_peft.core.problems import validated
    from mlx_peft.training.run import RunFolder

    if name is None and runs:
        own = RunFolder(runs[0]).read_config().model
        return own if image_size is None else own.model_copy(update={"image_size": image_size})
    return validated(Model, "--model", {"name": name or "vit_small_patch16_224", "image_size": image_size})

"""``eval``: how good a run is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from mlx_peft.cli.common import AsJson, Backend, RunArgument, backend_of, echo, echo_json


def eval(
    ctx: typer.Context,
    run: RunArgument,
    split: Annotated[Literal["val", "test"], typer.Option(metavar="val|test", help="Images to evaluate on.")] = "test",
    model: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="A model to evaluate on the run's images.", show_default=False),
    ] = None,
    backend: Backend = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Where to write the metrics by class, and pictures.", show_default=False),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Evaluate a run, or a model, on images it was not trained on."""
    from mlx_peft.artifacts.examine import examine_splits
    from mlx_peft.cli.progress import watch
    from mlx_peft.report import evaluation
    from mlx_peft.report.summary import metrics_line

    with watch() as progress:
        splits, loaded = examine_splits(run, [split], backend_of(ctx, backend), model=model, watch=progress.opening)
    for note in loaded.notes:
        echo(f"note: {note}", err=True)
    found = splits[split]
    details = found.details(loaded.classes)
    if as_json:
        facts = {"run": str(run), **({"model": str(model)} if model else {}), "split": split}
        echo_json({**facts, "metrics": found.metrics, **details})
    else:
        echo(metrics_line(split, found.metrics))
    if out:  # after all is said: a full disk does not take back what was measured
        for path in evaluation.write(out, split, found.metrics, details, found.confusion):
            echo(path, err=as_json)

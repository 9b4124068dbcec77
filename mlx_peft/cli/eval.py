"""``eval``: how good a run is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from mlx_peft.cli.common import (
    AsJson,
    Backend,
    RunArgument,
    TokensToo,
    Weights,
    backend_of,
    echo,
    echo_json,
    tokens_of,
)
from mlx_peft.cli.device import Device


def eval(
    ctx: typer.Context,
    run: RunArgument,
    images: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE",
            help="Where its images are now, data.root=FOLDER, or others of the same classes.",
            show_default=False,
        ),
    ] = None,
    split: Annotated[
        Literal["train", "val", "test"] | None,
        typer.Option(metavar="train|val|test", help="Images to evaluate on.", show_default="test"),
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="A model to evaluate on the run's images.", show_default=False),
    ] = None,
    weights: Weights = None,
    tokens: TokensToo = None,
    backend: Backend = None,
    device: Device = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Where to write the metrics by class, and pictures.", show_default=False),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Evaluate a run, or a model, on its images or on others.

    Of another folder or data set, classes are found by their names; without a test split of its own, all its images are
    taken.
    """
    from mlx_peft.artifacts.ahead import must_hold_files
    from mlx_peft.artifacts.examine import examine_splits
    from mlx_peft.cli.progress import watch
    from mlx_peft.report import evaluation
    from mlx_peft.report.summary import metrics_line

    if out:
        must_hold_files(out)
    with watch() as progress:
        done = examine_splits(
            run, [split], backend_of(ctx, backend, device), model=model, weights=weights, overrides=images or (),
            tokens=tokens_of(tokens), watch=progress.opening,
        )  # fmt: skip
    for note in done.loaded.notes:
        echo(f"note: {note}", err=True)
    (name, found), *_ = done.found.items()
    details = found.details(done.loaded.classes)
    if as_json:
        facts = {"run": str(run), **({"model": str(model)} if model else {}), "split": name}
        images_of = {"own_images": done.images.own, "sha256": done.splits[name].sha256}
        echo_json({**facts, **images_of, "metrics": found.metrics, **details})
    else:
        echo(metrics_line(name, found.metrics))
    if out:  # after all is said: a full disk does not take back what was measured
        for path in evaluation.write(out, name, found.metrics, details, found.confusion):
            echo(path, err=as_json)

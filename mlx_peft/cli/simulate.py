"""``simulate``: what rounding weights and activations would cost a run."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from mlx_peft.cli.common import AsJson, Backend, RunArgument, Weights, backend_of, echo, echo_json


def simulate(
    ctx: typer.Context,
    run: RunArgument,
    settings: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="wNaN",
            help="Bits of weights, activations: w8a8, if left out. Or data.root=FOLDER, where its images are now.",
            show_default=False,
        ),
    ] = None,
    calibration: Annotated[
        list[str] | None,
        typer.Option(
            metavar="minmax|percentile|repq",
            help="How ranges are chosen: repq, if left out; may be repeated.",
            show_default=False,
        ),
    ] = None,
    percentile: Annotated[float, typer.Option(metavar="P", help="Of --calibration percentile.")] = 99.99,
    softmax: Annotated[
        str | None,
        typer.Option(
            metavar="uniform|log_sqrt2|best", help="Codes of attention's probabilities: by the calibration.",
            show_default=False,
        ),
    ] = None,
    images: Annotated[int, typer.Option(metavar="N", help="Training images to calibrate on.")] = 32,
    seed: Annotated[int, typer.Option(metavar="N", help="Of the choice of these images.")] = 0,
    split: Annotated[Literal["val", "test"], typer.Option(metavar="val|test", help="Images to evaluate on.")] = "test",
    weights: Weights = None,
    backend: Backend = None,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Quantise a run, activations too, in simulation, and evaluate it."""
    from mlx_peft.artifacts.simulate import simulate_run
    from mlx_peft.config.simulation import from_options
    from mlx_peft.report.simulation import document, lines

    overrides = [one for one in settings or [] if "=" in one]
    simulations = from_options(
        [one for one in settings or [] if "=" not in one] or ["w8a8"],
        calibration or ["repq"],
        percentile=percentile,
        softmax=softmax,
        images=images,
        seed=seed,
    )
    report = simulate_run(
        run, simulations, split, backend_of(ctx, backend), note=lambda text: echo(text, err=True), weights=weights,
        overrides=overrides,
    )  # fmt: skip
    if as_json:
        echo_json(document(report))
    else:
        echo("\n".join(lines(report)))

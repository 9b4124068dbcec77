"""``parity``: whether the two backends agree."""

from __future__ import annotations

from typing import Annotated

import typer

from mlx_peft.cli.common import AsJson, echo_json

FIGURES = ("logits", "loss", "gradients", "trajectory", "merged")


def parity(
    model: Annotated[
        str | None, typer.Option(metavar="NAME", help="Only this model; all if left out.", show_default=False)
    ] = None,
    method: Annotated[
        str | None, typer.Option(metavar="NAME", help="Only this method; all if left out.", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compare the two backends, figure by figure.

    The same weights and images go through both; the status is 1 where they differ by more than rounding.
    """
    from mlx_peft.engine.parity import run, summary

    cells = []
    for cell in run(model, method):
        cells.append(cell)
        if as_json:
            continue
        if len(cells) == 1:
            typer.echo(f"{'model':<36} {'method':<10} " + " ".join(f"{name:>10}" for name in FIGURES))
        figures = " ".join(f"{getattr(cell, name):10.1e}" for name in FIGURES)
        typer.echo(f"{cell.model:<36} {cell.method:<10} {figures}{'' if cell.passed else '  differs'}")
    passed = all(cell.passed for cell in cells)
    if as_json:
        echo_json(summary(cells))
    else:
        typer.echo(f"relative errors, MLX against PyTorch: {'all' if passed else 'not all'} within rounding")
    if not passed:
        raise typer.Exit(1)

"""``parity``: whether the two backends agree."""

from __future__ import annotations

from typing import Annotated

import typer

from mlx_peft.cli.common import AsJson, echo, echo_json


def parity(
    model: Annotated[
        str | None, typer.Option(metavar="NAME", help="Only this model; all if left out.", show_default=False)
    ] = None,
    method: Annotated[
        str | None, typer.Option(metavar="NAME", help="Only this method; all if left out.", show_default=False)
    ] = None,
    bits: Annotated[
        int | None,
        typer.Option(metavar="N", help="Only over bases quantised to so many bits.", show_default=False),
    ] = None,
    steps: Annotated[
        bool, typer.Option(help="Also compare the losses of optimiser steps, which takes longest.")
    ] = True,
    as_json: AsJson = False,
) -> None:
    """Compare the backends' logits, gradients and training steps."""
    from mlx_peft.engine import parity

    results = []
    for cell in parity.run(model, method, bits, steps):
        results.append(cell)
        if not as_json:
            if len(results) == 1:
                echo(parity.HEADER)
            echo(parity.row(cell))
    report = parity.summary(results)
    if as_json:
        echo_json(report)
    elif report["passed"]:
        echo(f"\nthe backends agree in all {len(results)} cells")
    else:
        echo(f"\nthe backends differ in {sum(not cell.passed for cell in results)} of {len(results)} cells")
    if not report["passed"]:
        raise typer.Exit(1)

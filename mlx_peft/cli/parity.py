"""``parity``: whether the two backends agree, or either with itself in half precision."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import Annotated, Any, Literal

import typer

from mlx_peft.cli import completing
from mlx_peft.cli.common import AsJson, echo, echo_json
from mlx_peft.core.text import counted

OnlyModel = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="Only this model; all if left out.", show_default=False, autocompletion=completing.models
    ),
]
OnlyMethod = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="Only this method; all if left out.", show_default=False, autocompletion=completing.methods
    ),
]


def parity(
    model: OnlyModel = None,
    method: OnlyMethod = None,
    bits: Annotated[
        int | None,
        typer.Option(metavar="N", help="Only over bases quantised to so many bits.", show_default=False),
    ] = None,
    precision: Annotated[
        Literal["float32", "bfloat16", "float16"],
        typer.Option(
            metavar="float32|bfloat16|float16",
            help="In half precision each backend is compared with torch in float32, on a batch of real size.",
        ),
    ] = "float32",
    steps: Annotated[
        bool, typer.Option(help="Also compare the losses of optimiser steps, which takes longest.")
    ] = True,
    as_json: AsJson = False,
) -> None:
    """Compare the backends' logits, gradients and steps.

    With a half precision: what it costs in each of them.
    """
    from mlx_peft.checks import parity
    from mlx_peft.checks import precision as half
    from mlx_peft.report import blocks, checks

    matrix: ModuleType
    cells: Iterator[Any]
    as_row: Any
    if precision == "float32":
        matrix, columns, as_row = parity, checks.CELLS, checks.cell
        cells = parity.run(model, method, bits, steps)
    else:
        matrix, columns, as_row = half, checks.HALF_CELLS, checks.half_cell
        cells = half.run(precision, model, method, bits)
    results = []
    for cell in cells:
        results.append(cell)
        if not as_json:
            if len(results) == 1:
                echo(columns.head())
            echo(blocks.row(as_row(cell)))
    report = matrix.summary(results)
    if as_json:
        echo_json(report)
    elif report["passed"]:
        echo(f"\nthe backends agree in {'all ' * (len(results) > 1)}{counted(len(results), 'cell')}")
    else:
        echo(f"\nthe backends differ in {sum(not cell.passed for cell in results)} of {counted(len(results), 'cell')}")
    if not report["passed"]:
        raise typer.Exit(1)

"""``parity``: whether the two backends agree, or either with itself in half precision."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from mlx_peft.cli import completing
from mlx_peft.cli.common import AsJson, check_file, echo, echo_json
from mlx_peft.core import threads

if TYPE_CHECKING:
    from mlx_peft.report.checks import Table

OnlyModel = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="Only this model, at its own size.", show_default=False, autocompletion=completing.models
    ),
]
OnlyMethod = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Only this method.", show_default=False, autocompletion=completing.methods),
]
Out = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Also write it here: as JSON (.json) or a table (.md).", show_default=False),
]

UNCOMPILED = "; MLX computed uncompiled (--all and --method NAME compile its kernels)"


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
    everything: Annotated[
        bool, typer.Option("--all", help="The whole matrix: every model, and bases in few bits.")
    ] = False,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Compare the backends' logits, gradients and steps.

    Every method once, on a small model, takes a minute or two, on Linux's CPU without MLX's compiled kernels; the whole
    matrix hours. With a half precision: what it costs in each backend.
    """
    if out is not None:
        check_file("--out", out, (".json", ".md"))

    from mlx_peft.checks import matrix, parity
    from mlx_peft.checks import precision as half
    from mlx_peft.core.json_io import to_json
    from mlx_peft.core.writing import write_whole
    from mlx_peft.report import checks

    threads.at_most(1)  # two libraries multiply here, small matrices in turn, and would be in each other's way
    started = time.monotonic()
    if precision == "float32":
        parity.compile_nothing(unless=everything or model or method or bits)
        chosen = (matrix.whole if everything else matrix.each_once)(model, method, bits)
        table, results = checks.MATRIX, shown(parity.cells(chosen, steps=steps), len(chosen), checks.MATRIX, as_json)
        report = parity.summary(results)
    else:
        chosen = (half.whole if everything else half.each_once)(model, method, bits)
        table, results = checks.HALVES, shown(half.cells(chosen, precision), 2 * len(chosen), checks.HALVES, as_json)
        report = half.summary(results)
    report["compiled"] = parity.UNCOMPILED not in os.environ
    verdict = checks.verdict(results, time.monotonic() - started) + ("" if report["compiled"] else UNCOMPILED)
    if as_json:
        echo_json(report)
    else:
        echo(f"\n{verdict}")
    if out is not None:
        text = to_json(report) if out.suffix == ".json" else f"{table.whole(results)}\n\n{verdict}"
        write_whole(out, f"{text}\n".encode())
        echo(out, err=True)
    if not report["passed"]:
        raise typer.Exit(1)


def shown(cells: Iterator[Any], number: int, table: Table, quiet: bool) -> list[Any]:
    """So many cells, each said as soon as it is there, unless all is to be quiet on standard output."""
    from mlx_peft.cli.progress import watch

    results: list[Any] = []
    with watch() as progress:
        progress.comparing(0, number)
        for cell in cells:
            if not quiet:
                echo(table.row(cell) if results else f"{table.columns.head()}\n{table.row(cell)}")
            results.append(cell)
            progress.comparing(len(results), number)
    return results

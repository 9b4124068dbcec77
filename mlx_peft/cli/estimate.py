"""``estimate``: what a step of training holds and takes, before anything is loaded."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Annotated

import typer

from mlx_peft.cli import completing
from mlx_peft.cli.common import AsJson, Backend, Config, Overrides, echo, echo_json, read_experiment
from mlx_peft.core.errors import UserError

UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
"""What a number of bytes may be written in."""


def estimate(
    ctx: typer.Context,
    config: Config,
    overrides: Overrides = None,
    backend: Backend = None,
    device: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="What is to compute: m2-max, m3-pro, h100, ...",
            show_default="this machine",
            autocompletion=completing.devices,
        ),
    ] = None,
    memory: Annotated[
        str | None, typer.Option(metavar="SIZE", help="That it has: 24GB.", show_default="all of the device's")
    ] = None,
    classes: Annotated[
        int | None, typer.Option(min=1, help="Of the data, where the data set does not say.", show_default="100")
    ] = None,
    processes: Annotated[
        int, typer.Option(min=1, max=1024, metavar="N", help="That share each batch, on such a device each.")
    ] = 1,
    measured: Annotated[
        bool, typer.Option("--measure", help="Take the step here too, with random weights and images.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Say how much memory and time a step takes.

    Nothing is loaded for it. The status is 1 where it will not fit.
    """
    experiment = read_experiment(ctx, config, overrides, backend)
    size = None if memory is None else bytes_of(memory)

    from mlx_peft.checks import estimating
    from mlx_peft.report import estimate as report

    base = estimating.base_of(experiment, classes)
    found = estimating.estimate(experiment, base, estimating.device_of(experiment, device, size), processes)
    if measured:
        found = replace(found, measured=estimating.measure(found))
    if as_json:
        echo_json(report.facts(found))
    else:
        echo(report.estimated(found))
    if not found.fits:
        raise typer.Exit(1)


def bytes_of(text: str, option: str = "--memory") -> int:
    """``24GB`` in bytes. Raises UserError for what is no size."""
    match = re.fullmatch(r"\s*(\d{1,9}(?:\.\d{1,9})?)\s*([KMGT]I?B)?\s*", text, re.IGNORECASE)
    if match is None or not (size := int(float(match[1]) * UNITS.get((match[2] or "").upper(), 0))):
        raise UserError(f"{option}: {text!r} is no size; write 24GB, 24GiB or a number of bytes")
    return size

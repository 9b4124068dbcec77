"""``doctor``: what of this machine is in the way, and what to do about it."""

from __future__ import annotations

from typing import Annotated

import typer

from mlx_peft.cli.common import AsJson, echo, echo_json


def doctor(
    hub: Annotated[bool, typer.Option(help="Ask the Hugging Face hub whether it is there.")] = True,
    step: Annotated[
        bool, typer.Option(help="Take a step of LoRA in each backend, which takes most of the time.")
    ] = True,
    as_json: AsJson = False,
) -> None:
    """Find what on this machine is in the way, and what to do.

    Versions, memory, threads, folders, disk and hub are looked at, and a step is taken in each backend. The status is 1
    where there is a fault; a warning is none.
    """
    from mlx_peft.checks.doctor import examine
    from mlx_peft.report import doctor as report

    checks = examine.QUICK | (examine.HUB if hub else {}) | (examine.STEP if step else {})
    found = []
    for one in examine.examine(checks.items()):
        found.append(one)
        if not as_json:
            echo(report.line(one))
    if as_json:
        echo_json(report.facts(found))
    else:
        echo(f"\n{report.verdict(found)}")
    if not examine.passed(found):
        raise typer.Exit(1)

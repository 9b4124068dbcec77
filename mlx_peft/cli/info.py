"""``info``: what a file is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from mlx_peft.cli.common import AsJson, echo, echo_json
from mlx_peft.core.text import printable


def info(
    path: Annotated[
        Path,
        typer.Argument(metavar="CHECKPOINT", help="A file, a model's folder, a run or an adapter.", show_default=False),
    ],
    as_json: AsJson = False,
) -> None:
    """Say what a checkpoint is."""
    from mlx_peft.artifacts.inspect import inspect

    found = inspect(path)
    if as_json:
        echo_json(found)
        return
    for key, value in found.items():
        unquantised = key == "quantization" and value is None and found.get("model") is not None
        for index, line in enumerate(["none"] if unquantised else lines(value)):
            echo(f"{'' if index else key.replace('_', ' '):<14} {line}".rstrip())


def lines(value: Any) -> list[str]:
    """A value of the report as lines for a person."""
    if isinstance(value, dict):
        return [printable(f"{key}: {item}") for key, item in value.items()] or ["-"]
    if isinstance(value, list):
        return [printable(str(item)) for item in value] or ["-"]
    if isinstance(value, int) and not isinstance(value, bool):
        return [f"{value:,}"]
    return ["unknown" if value is None else printable(str(value))]

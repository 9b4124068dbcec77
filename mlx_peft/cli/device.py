"""The device that PyTorch computes on, as a command line names it."""

from __future__ import annotations

from typing import Annotated

import typer

from mlx_peft.core.errors import UserError


def _device(name: str | None) -> str | None:
    """The name itself. Raises UserError where no device is called so."""
    from mlx_peft.config.devices import known

    try:
        return None if name is None else known(name)
    except ValueError as error:
        raise UserError(f"--device {error}") from None


Device = Annotated[
    str | None,
    typer.Option(
        "--device",
        metavar="DEVICE",
        help="Where PyTorch computes: auto, cpu, mps, cuda or cuda:N.",
        show_default=False,
        callback=_device,
    ),
]

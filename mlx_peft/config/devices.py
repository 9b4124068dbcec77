"""The names of the devices that a run may compute on."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, Field

from mlx_peft.core.errors import shown

NAMES = "auto, cpu, mps, cuda or cuda:N"
PATTERN = re.compile(r"auto|cpu|mps|cuda(:[0-9]{1,3})?")


def known(name: str) -> str:
    """The name itself. Raises ValueError where no device is called so."""
    if not PATTERN.fullmatch(name):
        raise ValueError(f"should be {NAMES}, not {shown(name)}")
    return name


DeviceName = Annotated[
    str,
    Field(description=f"{NAMES}, where PyTorch has it; auto: the backend's own choice"),
    AfterValidator(known),
]
"""Whether there is such a device, the backend knows."""

"""How large what a user may write can be: far above what anybody needs, and within what some machine can do.

A number that no machine could meet (a batch of a billion images) is a slip, and is said to be one where it is written,
in place of ending in whatever it first breaks. What the machine at hand can hold is another question: ``footprint``.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field

from mlx_peft.core.errors import LONGEST_NAME, UserError, shown

LARGEST = 1e38
"""No factor or rate is larger: float32, in which everything is computed, ends at 3.4e38."""

MOST_STEPS = 2**32
"""A run has at most so many steps. A step's randomness is drawn from ``seed << 32 | step``: beyond, one seed's would be
another's."""

LONGEST_PATH, LONGEST_PART = 4096, 255
"""A path, and a file's name in it, have at most so many bytes: the file systems of Linux and macOS take no more."""

Positive = Annotated[float, Field(gt=0, le=LARGEST)]
NotNegative = Annotated[float, Field(ge=0, le=LARGEST)]
Share = Annotated[float, Field(ge=0, lt=1)]
"""A probability that is never certain, or a part that is never the whole."""
Gigabytes = Annotated[float, Field(ge=0, le=1e6)]
"""A size in gigabytes, up to a petabyte."""

Seed = Annotated[int, Field(ge=0, lt=2**32)]
Steps = Annotated[int, Field(ge=1, le=MOST_STEPS)]
Rank = Annotated[int, Field(ge=1, le=65536)]
"""A rank, at most as large as the widest layer there may be."""
BatchSize = Annotated[int, Field(ge=1, le=2**20)]


def _without_nul(text: str) -> str:
    if "\0" in text:
        raise ValueError("has a NUL character, which no name can have")
    return text


Name = Annotated[str, Field(max_length=LONGEST_NAME), AfterValidator(_without_nul)]
"""The name of a model, a data set or a column."""


def _said(path: Any) -> Any:
    """The path as it was written, before it becomes one: an empty text would be the working directory."""
    if path == "":
        raise ValueError("the path is empty: '.' is this folder")
    return path


def usable(path: str) -> str:
    """The path itself. Raises ValueError where it is empty, or no file system could have such a one."""
    _said(path)
    _without_nul(path)
    size, longest = len(os.fsencode(path)), max((len(os.fsencode(part)) for part in path.split("/")), default=0)
    if size > LONGEST_PATH or longest > LONGEST_PART:
        raise ValueError(
            f"is too long for a path: {size:,} bytes, at most {LONGEST_PATH:,}, and {LONGEST_PART} in each of its names"
        )
    return path


def must_be_usable(path: Path) -> None:
    """Raises UserError where no file system could have such a path: asking one would be an OSError, or a ValueError."""
    try:
        usable(str(path))
    except ValueError as error:
        raise UserError(f"{shown(str(path))}: the path {error}") from None


def _expanded(path: Path) -> Path:
    """``~`` as the home folder, which a shell leaves alone in ``data.root=~/images``."""
    return Path(usable(os.path.expanduser(_without_nul(str(path)))))


UserPath = Annotated[Path, BeforeValidator(_said), AfterValidator(_expanded)]
"""A path as a user writes it."""

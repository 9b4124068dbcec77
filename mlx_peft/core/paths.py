"""A path as somebody gives it in Python: text, or what the standard library takes for a path."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from mlx_peft.core.errors import UserError, shown


def given_path(path: Any, what: str) -> Path:
    """The path, ``~`` expanded.

    An empty text is none: to ``Path`` it is the working directory, which nobody means who gives nothing.

    Raises:
        UserError: it is empty, or no path; ``what`` it is of stands at the head.
    """
    if not isinstance(path, str | os.PathLike):
        raise UserError(f"{what} should be a path, not {shown(path)}")
    if not os.fspath(path):
        raise UserError(f"{what}: the path is empty")
    return Path(os.path.expanduser(path))

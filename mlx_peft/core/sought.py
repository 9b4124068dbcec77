"""Where a relative path was looked for, said to whoever wrote it where nothing is there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mlx_peft.core.errors import UserError


@contextmanager
def sought(path: Path, key: str) -> Iterator[None]:
    """Has a refusal of the block that names a relative path say where that was looked for, where nothing is there.

    Args:
        key: what the path is of: ``data.root``.
    """
    try:
        yield
    except UserError as error:
        if _is_there(path, error):
            raise
        raise _with_note(
            error,
            f"{key} {path} is relative to the working directory: it was looked for at {os.path.abspath(path)}",
        ) from error


@contextmanager
def sought_beside(path: Path, folder: Path | None) -> Iterator[None]:
    """Adds that it was looked for in a folder too, that of the configuration; None: it was not."""
    try:
        yield
    except UserError as error:
        if folder is None or _is_there(path, error) or os.path.abspath(folder) == os.getcwd():
            raise
        raise _with_note(error, f"and beside the configuration, at {os.path.abspath(folder / path)}") from error


def _is_there(path: Path, error: UserError) -> bool:
    """Whether the error is about something else."""
    return path.is_absolute() or os.path.exists(path) or str(path) not in str(error)


def _with_note(error: UserError, note: str) -> UserError:
    return UserError(f"{error}\n  note: {note}", arguments=error.arguments, command=error.command)

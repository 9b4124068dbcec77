"""Writing files so that they are whole, and so that a full disk is something a person is told about."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mlx_peft.config.errors import UserError


def write_whole(path: Path, content: bytes) -> None:
    """Puts ``content`` in the place of ``path`` in one stroke: a reader sees the old file or the new one, whole.

    Raises UserError where it cannot be written; the old file then stays as it was, and nothing else is left behind.
    What a process killed in the middle leaves, a hidden file beside it, is overwritten by the next one.
    """
    with disk_errors(path):
        temporary = path.with_name(f".{path.name}.tmp")
        try:
            with open(temporary, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turns an OSError of the block, which writes to ``path``, into a UserError."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(f"no space left for {path}: make room, then continue the run with --resume") from error
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from error

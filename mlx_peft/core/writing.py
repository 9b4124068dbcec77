"""Writing files so that they are whole, and so that a full disk is something a person is told about."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from mlx_peft.core.errors import UserError


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


@contextmanager
def new_folder(target: Path, replaceable: Collection[str] = ()) -> Iterator[Path]:
    """A folder to write files into, which becomes ``target`` at the end, or vanishes if anything goes wrong.

    Args:
        replaceable: names of files that an earlier ``target`` may hold; it is replaced as a whole.

    Raises:
        UserError: where ``target`` is a file or holds other files, or cannot be written.
    """
    with writing(target):
        if target.exists() and (not target.is_dir() or {file.name for file in target.iterdir()} - {*replaceable}):
            raise UserError(f"{target}: exists already; name a new folder")
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as beside:
            folder = Path(beside, "new")
            folder.mkdir()
            yield folder
            for file in (*folder.iterdir(), folder):
                to_disk(file)
            if target.exists():
                os.replace(target, Path(beside, "old"))
            os.replace(folder, target)
            to_disk(target.parent)


@contextmanager
def writing(target: Path) -> Iterator[None]:
    """Turns what the disk, or safetensors, refuses in the block into a UserError."""
    try:
        yield
    except OSError as error:
        reason = "no space left on the device" if error.errno in (errno.ENOSPC, errno.EDQUOT) else error
        raise UserError(f"{target}: cannot be written: {reason}") from error
    except SafetensorError as error:
        raise UserError(f"{target}: cannot be written: {error}") from error


def to_disk(path: Path) -> None:
    """Waits until a file, or the list of a folder's files, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

"""Files of our own in folders that others use too: of distinctive names, never through a link, and looked at first."""

from __future__ import annotations

import errno
import os
import stat
import threading
from contextlib import suppress
from pathlib import Path

SUBFOLDER = "mlx-peft-cache"
"""What is kept in a folder that a user names lies in this folder there."""


def user_folder() -> Path:
    """``mlx-peft`` in the user's folder for caches. Raises RuntimeError where the user has none."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mlx-peft"


def own_folder(kind: str, folder: Path | None) -> Path:
    """A folder for what is kept of a kind, made where it is missing: below ``user_folder``, or below a user's own.

    Raises OSError where it cannot be made, or where a link has its name.
    """
    base = (folder / SUBFOLDER) if folder else user_folder()
    base.parent.mkdir(parents=True, exist_ok=True)
    for part in (base, base / kind):
        part.mkdir(exist_ok=True)
        if part.is_symlink() and (folder or part != base):  # the user's own folder for caches may be moved by a link
            raise OSError(errno.ELOOP, f"{part} is a link, and none is followed")
    return base / kind


def open_own(path: Path, magic: bytes = b"") -> int:
    """A file to read and write, made where it is missing: its descriptor. What is in it stays.

    Raises OSError where it cannot be opened, is a link, has a second name, is no plain file or, unless it is empty,
    does not begin with ``magic``: then it is somebody else's.
    """
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    try:
        status = os.fstat(file)
        if (
            not stat.S_ISREG(status.st_mode)
            or status.st_nlink > 1
            or (status.st_size and os.pread(file, len(magic), 0) != magic)
        ):
            raise OSError(errno.EEXIST, f"{path.name} there is a file of somebody else's")
    except BaseException:
        os.close(file)
        raise
    return file


def replace_own(path: Path, content: bytes) -> None:
    """Puts ``content`` in the place of ``path`` in one stroke. Raises OSError, with nothing left behind.

    What is beside it for a moment is the thread's own: several may write the same.
    """
    unfinished = path.with_name(f"{path.name}-{os.getpid()}-{threading.get_ident()}.part")
    with suppress(FileNotFoundError):
        unfinished.unlink()  # of an earlier one of these numbers
    file = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    try:
        with open(file, "wb") as stream:
            stream.write(content)
        os.replace(unfinished, path)
    except BaseException:
        with suppress(OSError):
            unfinished.unlink()
        raise

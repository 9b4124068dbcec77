"""Files of our own in folders that others use too: of distinctive names, never through a link, and looked at first."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

from mlx_peft.core import system

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


def open_own(path: Path, magic: bytes) -> int:
    """A file to read and write, made where it is missing: its descriptor. What is in it stays.

    Raises OSError where it cannot be opened, is a link or no plain file, or somebody else's: it does not begin with
    ``magic``, or is empty and has a second name.
    """
    file = unfollowed(str(path), os.O_RDWR | os.O_CREAT)
    try:
        status = os.fstat(file)
        known = system.read_at(file, len(magic), 0) == magic if status.st_size else status.st_nlink == 1
        if not stat.S_ISREG(status.st_mode) or not known:
            raise OSError(errno.EEXIST, f"{path.name} is somebody else's file")
    except BaseException:
        os.close(file)
        raise
    return file


def unfollowed(path: str, flags: int) -> int:
    """For ``open``: a file, and not one behind a link. Raises OSError where there is a link."""
    try:
        return os.open(path, flags | system.NOFOLLOW | system.NONBLOCK | system.CLOEXEC | system.BINARY, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:  # whose own words are "too many levels of symbolic links"
            error.strerror = f"{Path(path).name} there is a link, and none is followed"
        raise


def fresh(path: Path) -> BinaryIO:
    """A new file to write, in the place of what a killed process left there; of a link the link is removed."""
    path.unlink(missing_ok=True)
    return open(path, "xb")

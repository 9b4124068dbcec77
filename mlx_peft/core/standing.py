"""What stands where a file is to be put: another file gives way to it, and nothing else does."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from pathlib import Path

KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def passage(path: Path) -> str | None:
    """``a pipe``, ``a socket`` or ``a device``: a file moved there would cut off every program that uses it.

    None of a file, of a folder and of nothing. Of a link it is what the link leads to.
    """
    try:
        return KINDS.get(stat.S_IFMT(os.stat(path).st_mode))
    except OSError:
        return None


def is_among(path: Path, others: Iterable[str | os.PathLike[str] | int]) -> bool:
    """Whether a file is there that is one of the others, by whatever name; of an open one its number is enough."""
    try:
        own = os.stat(path)
    except OSError:
        return False
    return any(_is(own, other) for other in others)


def _is(own: os.stat_result, other: str | os.PathLike[str] | int) -> bool:
    try:
        return os.path.samestat(own, os.stat(other))
    except OSError:
        return False

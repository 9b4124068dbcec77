"""The versions of installed packages."""

from __future__ import annotations

from functools import cache
from importlib.metadata import PackageNotFoundError, version


@cache
def version_of(package: str) -> str | None:
    """None where it is not installed. Kept: each is read from a file, and no version changes while a process lives."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None

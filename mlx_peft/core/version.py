"""Which version this is."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def _installed() -> str:
    try:
        return version("mlx-peft")
    except PackageNotFoundError:  # the sources alone, on Python's path
        return "unknown"


VERSION = _installed()

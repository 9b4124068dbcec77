"""Places on this machine, and what of them may stand in a file that is made to be shared: the last part of the name.

A path says who its user is, and often more: a host, a project, a patient. Which weights are meant is said by their
digest.
"""

from __future__ import annotations

import os
import re
from pathlib import Path, PureWindowsPath

UNNAMED = "weights"
"""It stands for a place whose last part says nothing, or too much: ``.``, a home folder."""

_REMOTE = re.compile(r"https?://|hf://")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:/+")


def last_part(place: str) -> str:
    """The name of a file or folder without the folders that it lies in."""
    whole = os.path.abspath(os.path.expanduser(_SCHEME.sub("/", place, count=1)))
    name = PureWindowsPath(whole).name  # it parts at both kinds of slashes
    return name if name and Path(whole) != Path.home() else UNNAMED


def without_places(text: str) -> str:
    """The text, or its last part where it is a path: absolute, relative to here or to a folder above, or there.

    The names of a hub (``owner/name``) and addresses (``https://...``) are none.
    """
    if _REMOTE.match(text):
        return text
    windows = PureWindowsPath(text)
    parts = len(windows.parts) > 1
    named = text.startswith(("/", "~", "./", "../", ".\\", "..\\")) or bool(windows.drive) or text in (".", "..")
    there = parts and len(text) < 1000 and "\0" not in text and os.path.exists(text)
    return last_part(text) if named or there or _SCHEME.match(text) else text

"""Where files of some names lie below a folder: one walk for all of them."""

from __future__ import annotations

import os
from pathlib import Path


def below(folder: Path, *names: str) -> tuple[list[Path], ...]:
    """The paths of whatever has each name, sorted; no link to a folder is followed, and what may not be read is passed
    over."""
    found: dict[str, list[Path]] = {name: [] for name in names}
    for where, folders, files in os.walk(folder):
        for name in {*folders, *files} & found.keys():
            found[name].append(Path(where, name))
    return tuple(sorted(found[name]) for name in names)

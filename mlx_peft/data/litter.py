"""What systems and tools leave among a person's files: never part of a set, wherever it lies."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

NAMES = frozenset(
    {
        *("@eadir", "@recycle", "@tmp", "@sharebin", "#recycle", "#snapshot"),  # a NAS's thumbnails, bins, snapshots
        *("__macosx", "icon\r", "temporary items", "network trash folder"),  # macOS, and what it packs into archives
        *(
            "$recycle.bin",
            "recycler",
            "system volume information",
            "thumbs.db",
            "ehthumbs.db",
            "desktop.ini",
        ),  # Windows
        *("lost+found", "__pycache__"),
    }
)
"""Names of litter in lower case. Whatever begins with a dot is litter too: ``._1.jpg``, ``.ipynb_checkpoints``,
``.Trash-1000``, ``.thumbnails``, ``.git``."""


def is_litter(name: str) -> bool:
    """Whether a file or folder of this name is no person's."""
    return name.startswith((".", "~$")) or name.lower() in NAMES


def files_below(folder: str | Path, suffixes: tuple[str, ...], *, litter: bool = False) -> list[str]:
    """The files at any depth of a folder whose names end so (in lower case), by their paths from there, sorted.

    What is litter is passed over unless it is asked for; links to folders, and folders that cannot be listed, always.
    """
    found: list[str] = []
    waiting = [""]
    while waiting:  # os.walk calls itself for each folder in a folder, up to Python 3.11
        here = waiting.pop()
        with suppress(OSError), os.scandir(os.path.join(folder, here)) as entries:
            for entry in entries:
                if is_litter(entry.name) and not litter:
                    continue
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(f"{here}{entry.name}/")
                elif entry.name.lower().endswith(suffixes):
                    found.append(here + entry.name)
    return sorted(found)

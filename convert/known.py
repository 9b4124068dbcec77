"""Weights that were read before: where they lie, by their digest.

A file is known again by its size and its time, a folder by those of its files. What stands here is a hint and no more:
whoever opens weights computes their digest again.
"""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from pathlib import Path

from mlx_peft.core.own import own_folder
from mlx_peft.core.writing import replace_own

KIND = "weights"
MOST = 1000
"""So many entries are looked at."""


def remember(path: Path, digest: str) -> None:
    """Notes which weights lie at a path. Where the user's cache cannot be written, nothing happens."""
    place = os.path.abspath(path)
    with suppress(OSError, RuntimeError):
        name = hashlib.sha256(os.fsencode(place)).hexdigest()[:32]
        entry = {"path": place, "mark": _mark(Path(place)), "sha256": digest}
        content = json.dumps(entry).encode()
        file = own_folder(KIND, None) / f"{name}.json"
        if not file.is_file() or file.read_bytes() != content:
            replace_own(file, content)


def digest_at(path: Path) -> str | None:
    """The digest of the weights at a path, where they are as they were when it was noted; else None."""
    place = os.path.abspath(path)
    entry = _read(hashlib.sha256(os.fsencode(place)).hexdigest()[:32])
    with suppress(OSError):
        if entry.get("path") == place and entry.get("mark") == _mark(Path(place)):
            return entry.get("sha256")
    return None


def places_of(digest: str) -> list[Path]:
    """Where weights of a digest were read, as far as something is still there."""
    with suppress(OSError, RuntimeError):
        names = sorted(file.stem for file in own_folder(KIND, None).glob("*.json"))[:MOST]
        entries = [entry for name in names if (entry := _read(name)).get("sha256") == digest]
        return [path for entry in entries if os.path.exists(path := Path(entry.get("path", "")))]
    return []


def _read(name: str) -> dict[str, str]:
    """An entry; an empty one where there is none that is whole."""
    with suppress(OSError, RuntimeError, ValueError, RecursionError):
        entry = json.loads((own_folder(KIND, None) / f"{name}.json").read_bytes())
        if isinstance(entry, dict) and all(isinstance(value, str) for value in entry.values()):
            return entry
    return {}


def _mark(path: Path) -> str:
    """What tells a file, or a folder's files, as they are now, from every other. Raises OSError where nothing is."""
    files = sorted(file for file in path.iterdir() if file.is_file()) if path.is_dir() else [path]
    facts = [f"{file.name} {(status := file.stat()).st_size} {status.st_mtime_ns}" for file in files]
    return hashlib.sha256("\n".join(facts).encode("utf-8", "surrogateescape")).hexdigest()

"""The order in which runs are shown: that of their suite, and of their paths elsewhere."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

LARGEST = 2**24
"""A file with a suite's runs has at most so many bytes: of a thousand runs it has a fiftieth."""


def in_order(runs: Sequence[Path], folder: Path) -> list[Path]:
    """The folders of runs, sorted; those that lie beside a ``sweep.json`` below ``folder`` in its order."""
    found = sorted(runs)
    for record in sorted(folder.rglob("sweep.json")):
        places = {name: place for place, name in enumerate(_names(record))}
        slots = [at for at, run in enumerate(found) if run.parent == record.parent and run.name in places]
        members = sorted((found[at] for at in slots), key=lambda run: places[run.name])
        for at, run in zip(slots, members, strict=True):
            found[at] = run
    return found


def _names(record: Path) -> list[str]:
    """The names of the folders of a suite's runs; none where the file is not what a sweep writes: it decides nothing
    but an order."""
    try:
        if not record.is_file() or record.stat().st_size > LARGEST:
            return []
        entries = json.loads(record.read_text("utf-8"))["runs"]
        return [Path(entry["folder"]).name for entry in entries]
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return []

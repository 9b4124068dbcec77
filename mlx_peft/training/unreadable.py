"""Images that a run could not read, written down in its folder as they are met: ``unreadable.jsonl``, a line each."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mlx_peft.core.json_io import to_json
from mlx_peft.core.writing import disk_errors
from mlx_peft.data.unread import Broken, Unread

NAME = "unreadable.jsonl"


def write_down(unread: Unread, folder: Path, note: Callable[[str], object]) -> None:
    """Has each image that is met from now on noted, and added to the file; those that stand there are taken over.

    Raises UserError, when one is met, where the file cannot be written.
    """
    path = folder / NAME
    with suppress(OSError, ValueError, TypeError):  # what was damaged is met again
        for line in path.read_text("utf-8").splitlines():
            unread.add(Broken(**json.loads(line)))

    def heard(broken: Broken) -> None:
        note(f"left out of its batch, {broken.split}: {broken.reason}")
        with disk_errors(path), path.open("a", encoding="utf-8") as file:
            file.write(f"{to_json(asdict(broken), indent=None, ascii=True)}\n")

    unread.heard = heard


def facts(unread: Unread | None) -> dict[str, Any]:
    """For ``result.json``, of each split that has some: how many, which, and why. Empty where all could be read."""
    if unread is None or not unread.found:
        return {}
    found = {split: unread.of(split) for split in unread.splits}
    images = {split: [{"image": one.image, "reason": one.reason} for one in some] for split, some in found.items()}
    return {"unreadable": {split: {"count": len(some), "images": some} for split, some in images.items()}}

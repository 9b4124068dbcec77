"""A folder that says of each image why a model says what it says: a picture an image, and for several a page."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from mlx_peft.artifacts.explain import Explained, Unread
from mlx_peft.core.errors import UserError
from mlx_peft.core.json_io import to_json
from mlx_peft.core.text import counted, printable
from mlx_peft.core.writing import new_folder
from mlx_peft.report.explained import draw
from mlx_peft.report.overview import MOST, overview
from mlx_peft.report.page import page
from mlx_peft.tasks.task import Task

RECORD, PAGE, OVERVIEW = "explanations.json", "index.html", "overview.png"
"""What there is in the folder, for programs; and of several images the page, and the first of them in one picture."""
LONGEST = 80
"""A file's name has so many letters of its image's at the most."""

Entry = dict[str, Any]
"""``{"image": path, "picture": file, "class": name, "predictions": [...], "tokens": [...]}``, or ``{"image": path,
"error": reason}``."""


def write(
    out: Path,
    each: Iterable[Explained | Unread],
    task: Task,
    title: str,
    *,
    blocks: Sequence[int] | None = None,
    arrays: bool = False,
) -> list[Entry]:
    """Writes a picture of each image as it comes, RECORD, and of several OVERVIEW and PAGE; then the folder is there.

    An earlier folder of this kind is replaced.

    Args:
        title: of the page: the model's name.
        blocks: see ``report.explained.draw``.
        arrays: whether the maps are written too, an ``.npz`` beside each picture.

    Raises:
        UserError: no image could be read, or the folder cannot be written or holds other files.
    """
    found: list[Entry] = []
    first: list[tuple[Explained, str]] = []
    names = {OVERVIEW.partition(".")[0]}
    with new_folder(out, _earlier(out)) as folder:
        for one in each:
            if isinstance(one, Unread):
                found.append({"image": one.image, "error": one.error})
                continue
            name = _name(one.image, names)
            lines = [task.line(answer) for answer in one.answers]
            (folder / f"{name}.png").write_bytes(draw(one, lines, blocks))
            entry = {
                "image": one.image, "picture": f"{name}.png", "class": one.of, "predictions": one.answers,
                "tokens": list(one.counts),
            }  # fmt: skip
            if arrays:
                (folder / f"{name}.npz").write_bytes(_arrays(one))
                entry["arrays"] = f"{name}.npz"
            found.append(entry)
            if len(first) < MOST:
                first.append((one, lines[0]))
        _must_have_some(found)
        (folder / RECORD).write_text(f"{to_json(found)}\n", "utf-8")
        if len(found) > 1:
            images, answers = zip(*first, strict=True)
            (folder / OVERVIEW).write_bytes(overview(images, answers, blocks))
            told = [(entry, [task.line(answer).strip() for answer in entry.get("predictions", [])]) for entry in found]
            (folder / PAGE).write_text(page(title, told), "utf-8")
    return found


def _must_have_some(found: Sequence[Entry]) -> None:
    if any("error" not in entry for entry in found):
        return
    if not found:
        raise UserError("no image is named: the list is empty")
    none_of = "" if len(found) == 1 else f"none of the {counted(len(found), 'image')} can be read; the first: "
    raise UserError(f"{none_of}{found[0]['error']}")


def _earlier(out: Path) -> set[str]:
    """The names in a folder that this module wrote: what is in it by the record there, and the record and the page."""
    with suppress(OSError, ValueError, TypeError, AttributeError, RecursionError):
        entries = json.loads((out / RECORD).read_bytes())
        named = {entry.get(kind) for entry in entries for kind in ("picture", "arrays")}
        return {RECORD, PAGE, OVERVIEW, *(name for name in named if str(name).endswith((".png", ".npz")))}
    return set()


def _name(image: str, taken: set[str]) -> str:
    """A file's name of letters that every system takes, like the image's, which no other image has."""
    stem = re.sub(r"[^\w-]+", "_", printable(Path(image).stem))[:LONGEST] or "image"
    name, number = stem, 1
    while name.lower() in taken:  # some systems have one name for both
        number += 1
        name = f"{stem}-{number}"
    taken.add(name.lower())
    return name


def _arrays(explained: Explained) -> bytes:
    file = io.BytesIO()
    np.savez_compressed(
        file, pixels=explained.pixels, rollout=explained.rollout, weighted=explained.weighted,
        taken=np.stack(explained.taken), tokens=np.stack(explained.tokens), counts=np.array(explained.counts),
    )  # fmt: skip
    return file.getvalue()

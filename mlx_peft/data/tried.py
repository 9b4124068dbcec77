"""The images of a set tried, before anything is done with them: which can be read, and what is seen in them.

What was found of an image before, and has not changed, is remembered: see ``data.checked``.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np

from mlx_peft.config import schema
from mlx_peft.core.errors import UserError
from mlx_peft.data.checked import SEEN, WHOLE, Memory
from mlx_peft.data.dataset import ADVICE, EncodedImages, FileImages, Images, Split
from mlx_peft.data.entry import Entry, Found
from mlx_peft.data.hands import number
from mlx_peft.data.heads import strange
from mlx_peft.data.leftout import with_notes
from mlx_peft.data.lists import left_out
from mlx_peft.data.looking import Watch, each, unwatched
from mlx_peft.data.memory import one_image
from mlx_peft.data.names import EXAMPLES
from mlx_peft.data.seen import RECORD, seen, there
from mlx_peft.data.strangers import kind_in

CHECKED = 50_000
"""A set of the user's own with at most so many files is decoded once on opening, so that a broken one is found before
training. Larger ones are checked as they are read, whatever the configuration says (the beginnings of a few files are
looked at: ``data.heads``), and so are sets whose published size was found, unless broken images are to be skipped:
`data check` reads all.
"""


def readable(found: Found, entry: Entry, config: schema.Data, watch: Watch = unwatched) -> tuple[Found, list[int]]:
    """All images tried, where the configuration or the size of the set asks for it; the broken refused or left out.

    Those of the training split, from which others may be carved, are all there still: see ``splits.hold_out``. The rows
    that are broken there come beside. Those that were found whole before, and have not changed, are not decoded again.
    """
    splits = _files(found)
    if _large(splits):
        return replace(found, notes=(*found.notes, *strange(splits))), []
    if not splits or (entry.published and config.unreadable != "skip"):
        return found, []
    memory = Memory.of(config, WHOLE)
    whole: list[np.ndarray] = []
    good: dict[str, Split] = {}
    left: dict[str, Split] = {}
    rows_broken: list[int] = []
    broken: list[str] = []
    kinds: Counter[str] = Counter()
    for name, split in splits.items():
        images = split.images
        assert isinstance(images, FileImages | EncodedImages)
        marks = images.marks(watch)
        reasons = _reasons(split, np.flatnonzero(~memory.find(marks)), number(config.threads), watch)
        rows = np.setdiff1d(np.arange(split.size), np.array([*reasons], np.int64))
        whole.append(marks[rows])
        if reasons and config.unreadable == "refuse":
            memory.keep(np.concatenate([memory.marks, *whole]))  # the others need not be tried again
            raise UserError(_refusal([*reasons.values()], name))
        identifiers = split.images.identifiers
        broken += [identifiers[row] for row in reasons]
        kinds.update(kind for reason in reasons.values() if (kind := kind_in(reason)))
        part = replace(split, images=replace(images, unreadable=memory.forget))
        left[name] = good[name] = part.take(rows, name)
        if name == "train":
            left[name], rows_broken = part, sorted(reasons)
    memory.keep(np.concatenate(whole))
    notes = [left_out("unreadable", broken)] if broken else []
    notes += [f"{count} of the unreadable files: each is {kind}" for kind, count in kinds.most_common()]
    with with_notes(lambda: notes):
        for label in np.setdiff1d(splits["train"].labels, good["train"].labels) if "train" in good else ():
            raise UserError(f"{config.root}: no image of class {found.classes[label]!r} in train can be read")
        if empty := [name for name, split in good.items() if not split.size]:
            raise UserError(f"{config.root}: no image of {empty[0]} can be read")
    return replace(found, splits={**found.splits, **left}, notes=(*found.notes, *notes)), rows_broken


def as_read(found: Found) -> bool:
    """Whether a set has more image files than are tried before it is used: broken ones are met as it is read."""
    return _large(_files(found))


def _files(found: Found) -> dict[str, Split]:
    """The splits of image files, which may be broken."""
    return {name: split for name, split in found.splits.items() if isinstance(split.images, FileImages | EncodedImages)}


def _large(splits: dict[str, Split]) -> bool:
    return sum(split.size for split in splits.values()) > CHECKED


def _reasons(split: Split, rows: np.ndarray, threads: int, watch: Watch) -> dict[int, str]:
    """The rows, of those given, whose images cannot be read, with the reasons. All are tried: the split depends on the
    files alone."""

    def reason(row: int) -> str | None:
        try:
            split.images.read(row)
        except UserError as error:
            return str(error).removesuffix(ADVICE)
        return None

    tried = each(reason, rows.tolist(), threads, f"trying the images of {split.name}", watch)
    return {row: why for row, why in zip(rows.tolist(), tried, strict=True) if why is not None}


def _refusal(reasons: list[str], split: str) -> str:
    """Names the first images that cannot be read, counts the others, and says what to do."""
    lines = reasons[:EXAMPLES]
    if more := len(reasons) - len(lines):
        lines.append(f"and {more} more in {split}")
    return "\n  ".join(lines) + ADVICE.replace("; ", "\n")


def looked_at(images: Images, config: schema.Data, *, tolerant: bool, watch: Watch = unwatched) -> np.ndarray:
    """What is seen in each image, RECORDs ``(n,)``; in those that were looked at before, and have not changed, from
    memory.

    Raises UserError at an image that cannot be read; if `tolerant`, its record is of zeros.
    """
    records = np.zeros(len(images), RECORD)
    if not isinstance(images, FileImages | EncodedImages):
        _look(images, np.arange(len(images)), records, number(config.threads), tolerant, watch)
        return records
    if tolerant:
        images = replace(images, unreadable=None)  # what was remembered of the others stays
    memory, marks = Memory.of(config, SEEN), images.marks(watch)
    unknown = np.flatnonzero(~memory.find(marks, records))
    _look(images, unknown, records, number(config.threads), tolerant, watch)
    read = there(records)
    if len(unknown) and read.any():
        memory.keep(marks, records, read)
    return records


def _look(images: Images, rows: np.ndarray, records: np.ndarray, threads: int, tolerant: bool, watch: Watch) -> None:
    """Puts what is seen in the images of those rows into their records."""

    nothing: np.void = np.zeros(1, RECORD)[0]

    def look(row: int) -> np.void:
        with one_image():
            try:
                return seen(images.read(row))
            except UserError:
                if not tolerant:
                    raise
                return nothing

    for row, record in zip(
        rows.tolist(), each(look, rows.tolist(), threads, "looking for near-duplicates", watch), strict=True
    ):
        records[row] = record

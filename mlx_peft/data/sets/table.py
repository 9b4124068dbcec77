"""A CSV file of images and labels, with a column of splits and one of groups where it has them."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from mlx_peft.config import schema
from mlx_peft.core.errors import UserError, suggest
from mlx_peft.data.dataset import FileImages, Split
from mlx_peft.data.entry import Entry, Found, Variant
from mlx_peft.data.lists import WHOLE, images_in, read_text
from mlx_peft.data.names import SPLIT_WORDS

USUAL = {
    "image": ("image", "path", "image_path", "file", "filename", "file_name", "img"),
    "label": ("label", "labels", "class", "target", "class_name"),
    "split": ("split", "subset"),
    "group": ("group", "patient", "patient_id"),
}
"""The usual names of the columns, tried in this order where `data.columns` names none."""

MAYBE_SPLIT = ("fold", "set")
"""Columns of these names hold splits or something else: not used unless they are named, and a note says so."""

NONE = "none"
"""In `data.columns`, for no column of splits or groups."""

MAX_ROWS = 10_000_000
"""Of a table that is read. (Of their letters there are at most lists.MAX_TEXT.)"""

MAX_GROUPS = 2**28
"""Letters that the groups of all rows may take, each as many as the longest: a gigabyte."""

_LINE = re.compile(r"[^\r\n]*(?:\r\n?|\n)|[^\r\n]+")


def read_table(config: schema.Data, variant: Variant) -> Found:
    """A file with a heading, comma-separated (``.tsv``: by tabs); paths are relative to the folder it lies in.

    `data.root` is the file, or a folder with just one. Classes are the labels, sorted (as numbers where all are whole).
    Raises UserError at a missing column, an empty label or group, a split of another name, or an image that is not
    there.
    """
    path = _file(config.root)
    column, cells, notes = _columns(path, config.columns)
    paths = images_in(path.parent.resolve(), cells["image"], path)
    names = [name.strip() for name in cells["label"]]
    if "" in names:
        raise UserError(f"{path}: row {names.index('') + 1} has no {column['label']!r}")
    classes, labels = classes_of(names)
    groups = _groups(cells["group"], column["group"], path) if column["group"] else None
    whole = Split("train", FileImages(path.parent.resolve(), paths), labels, groups)
    splits = parts_of(whole, cells["split"], column["split"], path) if column["split"] else {"train": whole}
    return Found(classes, splits, notes)


def parts_of(whole: Split, words: Sequence[str], column: str, where: object) -> dict[str, Split]:
    """The splits that a column of SPLIT_WORDS tells apart. Raises UserError at another word, or where none is train."""
    words = [word.strip().lower() for word in words]
    if unknown := sorted(set(words) - set(SPLIT_WORDS)):
        raise UserError(
            f"{where}: the split {unknown[0]!r} in {column!r} is none of train, val and test; where the column says "
            f"something else, name another one in data.columns.split, or {NONE}"
        )
    parts = [SPLIT_WORDS[word] for word in words]
    if "train" not in parts:
        raise UserError(f"{where}: no row has the split train")
    return {name: whole.take(np.flatnonzero(np.array(parts) == name), name) for name in dict.fromkeys(parts)}


def unused(heading: Sequence[str], column: str, wanted: str | None) -> tuple[str, ...]:
    """A note about a column that may hold splits, where none does that is known."""
    found = [] if column or wanted else [name for name in heading if name.strip().lower() in MAYBE_SPLIT]
    return tuple(f"not used: column {name!r}; where it holds splits, set data.columns.split: {name}" for name in found)


def _file(root: Path) -> Path:
    if root.is_file():
        return root
    found = sorted(path for path in root.glob("*") if path.suffix.lower() in (".csv", ".tsv"))
    if len(found) != 1:
        listed = ", ".join(path.name for path in found) or "none"
        raise UserError(f"data.root: {root} should be a CSV file, or a folder with one in it; there is {listed}")
    return found[0]


def _columns(path: Path, wanted: schema.Columns) -> tuple[dict[str, str], dict[str, list[str]], tuple[str, ...]]:
    """The name of each column, "" where it is not there, and its cells; of the others nothing is kept. And notes."""
    reader = csv.reader(_lines(read_text(path)), delimiter="\t" if path.suffix.lower() == ".tsv" else ",", strict=True)
    try:
        heading = next(reader, [])
        if len(set(heading)) != len(heading):
            raise UserError(f"{path}: two columns have the same name")
        column = {what: column_of(heading, what, getattr(wanted, what), path) for what in USUAL}
        place = {what: heading.index(name) for what, name in column.items() if name}
        cells: dict[str, list[str]] = {what: [] for what in place}
        shared: dict[str, str] = {}  # one text for all rows of a label, split or group
        number = 0
        for row in filter(None, reader):
            number += 1
            if len(row) != len(heading):
                raise UserError(f"{path}: row {number} does not have {len(heading)} cells")
            if number > MAX_ROWS:
                raise UserError(f"{path}: more than {MAX_ROWS:,} rows, the most that are read of a table")
            for what, at in place.items():
                cells[what].append(row[at] if what == "image" else shared.setdefault(row[at], row[at]))
    except csv.Error as error:
        raise UserError(f"{path}: line {reader.line_num} is no line of a table ({error})") from error
    if not number:
        raise UserError(f"{path}: lists nothing")
    return column, cells, unused(heading, column["split"], wanted.split)


def _lines(text: str) -> Iterator[str]:
    """A text's lines with their ends, without a second copy of it."""
    return (line.group() for line in _LINE.finditer(text))


def _groups(names: list[str], column: str, path: Path) -> np.ndarray:
    names = [name.strip() for name in names]
    if "" in names:
        raise no_group(f"{path}: row {names.index('') + 1}", column)
    longest = max(map(len, names))
    if longest * len(names) > MAX_GROUPS:
        raise UserError(f"{path}: a group's name of {longest:,} characters is too long for {len(names):,} rows")
    return np.array(names)


def no_group(row: str, column: str) -> UserError:
    """Of rows without one it is not known what they belong to; they are not all of one group."""
    return UserError(f"{row} has no {column!r}: fill it in, or set data.columns.group: {NONE}")


def column_of(heading: list[str], what: str, wanted: str | None, where: object) -> str:
    """The column that is asked for, or the first of a usual name; "" where there is none of splits or groups, or NONE
    is asked for.

    Raises UserError where another is missing.
    """
    optional = what in ("split", "group")
    if wanted == NONE and optional:
        return ""
    if wanted is not None:
        if wanted not in heading:
            raise UserError(f"data.columns.{what}: no {wanted!r} in {where}{suggest(wanted, heading)}")
        return wanted
    lower = {name.strip().lower(): name for name in reversed(heading)}
    found = next((lower[name] for name in USUAL[what] if name in lower), "")
    if not found and not optional:
        raise UserError(
            f"{where}: no column is called {' or '.join(USUAL[what][:3])}; there is {', '.join(heading) or 'none'}: "
            f"name it in data.columns.{what}"
        )
    return found


def classes_of(names: list[str]) -> tuple[tuple[str, ...], np.ndarray]:
    """The different names, sorted (as numbers where all are whole), and the place of each among them, int64."""
    different = set(names)
    whole = all(WHOLE.fullmatch(name) for name in different)
    classes = tuple(sorted(different, key=(lambda name: (int(name), name)) if whole else None))
    place = {name: number for number, name in enumerate(classes)}
    return classes, np.array([place[name] for name in names], np.int64)


ENTRIES = {
    "csv": Entry(
        read=read_table,
        description="a CSV file of paths and labels, optionally with splits and groups (patients)",
        source="yours",
        licence="yours",
        columns=True,
    )
}

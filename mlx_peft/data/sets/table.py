"""A CSV file of images and labels, with a column of splits and one of groups where it has them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from mlx_peft.config import schema
from mlx_peft.core.errors import UserError
from mlx_peft.data.cells import read_cells
from mlx_peft.data.columns import NONE, SAMPLE, SAMPLED, USUAL, column_of, no_group, unused
from mlx_peft.data.dataset import FileImages, Split
from mlx_peft.data.entry import Entry, Found, Variant
from mlx_peft.data.leftout import unlabelled, with_notes
from mlx_peft.data.lists import WHOLE, images_in
from mlx_peft.data.litter import is_litter
from mlx_peft.data.looking import Watch
from mlx_peft.data.names import plain_split, spelled
from mlx_peft.data.patterns import Folders, advice, fields, filled

MAX_GROUPS = 2**28
"""The groups of all rows may take so many letters, each as many as the longest: a gigabyte."""


def read_table(config: schema.Data, variant: Variant, watch: Watch) -> Found:
    """A file with a heading; paths are relative to the folder it lies in.

    `data.root` is the file, or a folder with just one. Cells are parted by commas (``.tsv``: by tabs), or by what the
    heading has instead. Classes are the labels, sorted (as numbers where all are whole). A split other than train that
    has no labels is left out. Raises UserError at a missing column, an empty label or group, a split of another name,
    or an image that is not there.
    """
    path = _file(config.root)
    root = path.parent.resolve()
    table = _read(path, root, config.columns)
    with with_notes(lambda: table.notes):
        names = [spelled(name.strip()) for name in table.cells["label"]]
        parts = split_words(table.cells["split"], table.column["split"], path) if table.column["split"] else None
        labelled, notes = _labelled(names, parts, table.column["label"], path)
        names = [names[row] for row in labelled]
        column = table.column["image"]
        listed = [table.cells["image"][row] for row in labelled]
        paths = images_in(root, listed, path, lambda missing: advice(root, missing, column) if column else "", watch)
        classes, labels = classes_of(names)
        groups = None
        if table.column["group"]:
            groups = _groups(table.cells["group"], labelled, table.column["group"], path)
        whole = Split("train", FileImages(root, paths), labels, groups)
        splits = {"train": whole} if parts is None else parts_of(whole, [parts[row] for row in labelled])
        return Found(classes, splits, (*table.notes, *notes))


def split_words(words: Sequence[str], column: str, where: object) -> list[str]:
    """The split of each row, as a column names it. Raises UserError at another word, or where none is train."""
    known = {word: plain_split(word) for word in set(words)}
    if unknown := sorted(word for word, split in known.items() if split is None):
        raise UserError(
            f"{where}: the split {unknown[0]!r} in {column!r} is none of train, val and test; where the column says "
            f"something else, name another one in data.columns.split, or {NONE}"
        )
    parts = [known[word] or "" for word in words]
    if "train" not in parts:
        raise UserError(f"{where}: no row has the split train")
    return parts


def parts_of(whole: Split, parts: Sequence[str]) -> dict[str, Split]:
    """The rows of each split."""
    return {name: whole.take(np.flatnonzero(np.array(parts) == name), name) for name in dict.fromkeys(parts)}


def _labelled(
    names: Sequence[str], parts: Sequence[str] | None, column: str, path: Path
) -> tuple[np.ndarray, tuple[str, ...]]:
    """The rows that are used: but for the splits of which no row has a label, all; and notes about these.

    Raises UserError at another row without one.
    """
    split = np.array(parts if parts is not None else ["train"] * len(names))
    empty = np.array([not name for name in names])
    without = [part for part in ("val", "test") if (split == part).any() and empty[split == part].all()]
    used = np.flatnonzero(~np.isin(split, without))
    if (blank := used[empty[used]]).size:
        raise UserError(f"{path}: row {blank[0] + 1} has no {column!r}: fill it in, or leave the row out")
    return used, tuple(unlabelled(part, int((split == part).sum())) for part in without)


def _file(root: Path) -> Path:
    if root.is_file():
        return root
    if not root.is_dir():
        raise UserError(f"data.root: there is no {root}; it should be a CSV file, or a folder with one in it")
    found = sorted(path for path in root.iterdir() if path.suffix.lower() in (".csv", ".tsv"))
    found = [path for path in found if not is_litter(path.name)]
    if len(found) != 1:
        listed = ", ".join(path.name for path in found) or "none"
        raise UserError(f"data.root: {root} should be a CSV file, or a folder with one in it; there is {listed}")
    return found[0]


@dataclass(frozen=True)
class _Table:
    """The name of each column, "" where it is not there or is several, and its cells; of others no more than notes
    need is kept."""

    column: dict[str, str]
    cells: dict[str, list[str]]
    notes: tuple[str, ...]


def _read(path: Path, root: Path, wanted: schema.Columns) -> _Table:
    table = read_cells(path)
    heading = table.heading
    pattern = fields(wanted.image, heading, path)
    column = {
        what: column_of(heading, what, getattr(wanted, what), path) for what in USUAL if what != "image" or not pattern
    }
    place = {what: heading.index(name) for what, name in column.items() if name}
    ids = [heading.index(name) for name in pattern]
    images = _pattern(wanted.image or "", root) if pattern else None
    cells: dict[str, list[str]] = {what: [] for what in USUAL if what in place or what == "image"}
    used = {*column.values(), *pattern}
    others = [at for at, name in enumerate(heading) if name not in used]
    sample: dict[str, list[str]] = {heading[at]: [] for at in others}
    sampled = min(SAMPLE, SAMPLED // max(len(others), 1))
    shared: dict[str, str] = {}  # one text for all rows of a label, split or group
    for number, row in enumerate(table.rows, 1):
        for what, at in place.items():
            cells[what].append(row[at] if what == "image" else shared.setdefault(row[at], row[at]))
        if images is not None:
            cells["image"].append(images([row[at].strip() for at in ids]))
        if number <= sampled:
            for at, column_sample in zip(others, sample.values(), strict=True):
                column_sample.append(row[at])
    column = {"image": "", **column}
    return _Table(column, cells, table.notes + unused(heading, column, wanted, sample))


def _pattern(pattern: str, root: Path) -> Callable[[Sequence[str]], str]:
    """Where a row's image is, by the cells that the pattern names."""
    return Folders(root, pattern).path if "*" in pattern else partial(filled, pattern)


def _groups(cells: list[str], rows: np.ndarray, column: str, path: Path) -> np.ndarray:
    names = [spelled(cells[row].strip()) for row in rows]
    if "" in names:
        raise no_group(f"{path}: row {rows[names.index('')] + 1}", column)
    longest = max(map(len, names))
    if longest * len(names) > MAX_GROUPS:
        raise UserError(f"{path}: a group's name of {longest:,} characters is too long for {len(names):,} rows")
    return np.array(names)


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

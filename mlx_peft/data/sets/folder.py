"""A folder of images, a subfolder for each class; and what other sets of that form share with it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mlx_peft.config import schema
from mlx_peft.config.errors import UserError
from mlx_peft.data.dataset import FileImages, Split
from mlx_peft.data.entry import Entry, Found, Variant
from mlx_peft.data.lists import left_out
from mlx_peft.data.reading import SUFFIXES

SPLIT_FOLDERS = {"train": ("train",), "val": ("val", "validation"), "test": ("test",)}


@dataclass
class LeftOut:
    """What was not taken, for the notes."""

    others: list[str] = field(default_factory=list)
    links: list[str] = field(default_factory=list)

    def notes(self) -> tuple[str, ...]:
        kinds = {"without the suffix of an image": self.others, "links to folders or out of the root": self.links}
        return tuple(left_out(kind, names) for kind, names in kinds.items() if names)


def read_folder(config: schema.Data, variant: Variant) -> Found:
    """Class folders, either below ``train``, ``val`` (or ``validation``) and ``test``, or directly below the root.

    Images lie at any depth of a class folder; names are sorted; hidden files, files without an image's suffix and links
    that leave the root are left out. Raises UserError for a missing root, an empty class, or splits with other classes.
    """
    root = existing(config.root)
    notes = LeftOut()
    own = _own_splits(root)
    if not own:
        classes = class_folders(root)
        return Found(classes, {"train": read_classes("train", root, root, classes, notes)}, notes.notes())
    classes = class_folders(own["train"])
    for folder in own.values():
        _same_classes(folder, classes, class_folders(folder), own["train"])
    splits = {name: read_classes(name, root, folder, classes, notes) for name, folder in own.items()}
    beside = sorted({folder.name for folder in _subfolders(root)} - {folder.name for folder in own.values()})
    others = (f"left out, folders beside train: {', '.join(beside)}",) if beside else ()
    return Found(classes, splits, notes.notes() + others)


def existing(root: Path) -> Path:
    """The root, links resolved. Raises UserError where it is no folder."""
    if not root.is_dir():
        raise UserError(f"data.root: {root} is not a folder")
    return root.resolve()


def _own_splits(root: Path) -> dict[str, Path]:
    """The split folders of the root; none where ``train`` is missing or is itself a class full of images."""
    if not (root / "train").is_dir() or not _subfolders(root / "train"):
        return {}
    own = {}
    for split, names in SPLIT_FOLDERS.items():
        found = [root / name for name in names if (root / name).is_dir()]
        if len(found) > 1:
            raise UserError(f"{root}: both {' and '.join(folder.name for folder in found)} are there; keep one")
        if found:
            own[split] = found[0]
    return own


def _subfolders(folder: Path) -> list[Path]:
    found = (entry for entry in folder.iterdir() if entry.is_dir() and not entry.is_symlink())
    return sorted(entry for entry in found if not entry.name.startswith("."))


def class_folders(folder: Path) -> tuple[str, ...]:
    """The names of the classes, sorted. Raises UserError where there is none."""
    classes = tuple(entry.name for entry in _subfolders(folder))
    if not classes:
        raise UserError(f"{folder}: no class folders; each class is a folder of images: {folder.name}/CLASS/IMAGE.jpg")
    return classes


def _same_classes(folder: Path, classes: tuple[str, ...], found: tuple[str, ...], train: Path) -> None:
    missing, more = sorted(set(classes) - set(found)), sorted(set(found) - set(classes))
    if missing:
        raise UserError(f"{folder}: no folder for {_listed(missing)}, which {train.name} has")
    if more:
        raise UserError(f"{folder}: has {_listed(more)}, which {train.name} does not")


def _listed(names: list[str]) -> str:
    return ("class " if len(names) == 1 else "classes ") + ", ".join(map(repr, names))


def read_classes(name: str, root: Path, folder: Path, classes: tuple[str, ...], notes: LeftOut) -> Split:
    """The images of the class folders below `folder`, sorted within each, under paths relative to the root.

    Raises UserError where a class has none.
    """
    paths: list[str] = []
    counts = []
    for class_name in classes:
        found = sorted(image_files(root, folder / class_name, notes))
        if not found:
            raise UserError(f"{folder / class_name}: no images in this class folder (taken: {', '.join(SUFFIXES)})")
        paths += found
        counts.append(len(found))
    return Split(name, FileImages(root, tuple(paths)), np.repeat(np.arange(len(classes)), counts))


def image_files(root: Path, folder: Path, notes: LeftOut) -> Iterator[str]:
    """Paths relative to the root (links resolved) of the images at any depth of a folder."""
    for place, folders, files in os.walk(folder):
        here = os.path.relpath(place, root)
        here = "" if here == "." else here.replace(os.sep, "/") + "/"
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        notes.links += [here + name for name in folders if os.path.islink(os.path.join(place, name))]
        for name in sorted(name for name in files if not name.startswith(".")):
            path = os.path.join(place, name)
            if not name.lower().endswith(SUFFIXES):
                notes.others.append(here + name)
            elif os.path.islink(path) and not Path(path).resolve().is_relative_to(root):
                notes.links.append(here + name)
            else:
                yield here + name


ENTRIES = {
    "folder": Entry(
        read=read_folder,
        description="images of any size: a folder for each class, with or without train/val/test",
        source="yours",
        licence="yours",
    )
}

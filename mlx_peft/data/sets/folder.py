"""A folder of images, a subfolder for each class; and what other sets of that form share with it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mlx_peft.config import schema
from mlx_peft.core.errors import UserError
from mlx_peft.data.dataset import FileImages, Split
from mlx_peft.data.entry import SPLITS, Entry, Found, Variant
from mlx_peft.data.lists import left_out
from mlx_peft.data.reading import SUFFIXES
from mlx_peft.data.sets.table import SPLIT_WORDS


@dataclass
class LeftOut:
    """What was not taken, for the notes."""

    others: list[str] = field(default_factory=list)
    links: list[str] = field(default_factory=list)

    def notes(self) -> tuple[str, ...]:
        kinds = {"without the suffix of an image": self.others, "links to folders or out of the root": self.links}
        return tuple(left_out(kind, names) for kind, names in kinds.items() if names)


def read_folder(config: schema.Data, variant: Variant) -> Found:
    """Class folders, either below ``train``, ``val`` and ``test`` (any of SPLIT_WORDS), or directly below the root.

    Images lie at any depth of a class folder; names are sorted; hidden files, files without an image's suffix, links to
    folders and links that leave the root are left out. Raises UserError for a missing root, an empty class, splits with
    other classes, or splits without one to train on.
    """
    root = existing(config.root)
    notes = LeftOut()
    own = _own_splits(root)
    if not own:
        classes = class_folders(root, root, notes)
        return Found(classes, {"train": read_classes("train", root, root, classes, notes)}, notes.notes())
    used = {folder.name for folder in own.values()}
    notes.links += [name for name in _links(root) if name not in used]
    found = {split: class_folders(root, folder, notes) for split, folder in own.items()}
    classes = found["train"]
    for split, folder in own.items():
        _same_classes(folder, classes, found[split], own["train"])
    splits = {name: read_classes(name, root, folder, classes, notes) for name, folder in own.items()}
    beside = sorted({folder.name for folder in _subfolders(root)} - used)
    others = (f"left out, folders beside train: {', '.join(beside)}",) if beside else ()
    return Found(classes, splits, notes.notes() + others)


def existing(root: Path) -> Path:
    """The root, links resolved. Raises UserError where it is no folder."""
    if not root.is_dir():
        raise UserError(f"data.root: {root} is not a folder")
    return root.resolve()


def _own_splits(root: Path) -> dict[str, Path]:
    """The split folders of the root; none where train is missing or is itself a class full of images.

    Raises UserError at two folders for a split, or where there is nothing but split folders and none to train on.
    """
    named: dict[str, list[Path]] = {split: [] for split in SPLITS}
    for entry in sorted(root.iterdir()):
        split = SPLIT_WORDS.get(entry.name.lower())
        if split and entry.is_dir() and entry.resolve().is_relative_to(root):
            named[split].append(entry)
    if any(_subfolders(folder) for folder in named["train"]):
        for found in named.values():
            if len(found) > 1:
                raise UserError(f"{root}: both {' and '.join(folder.name for folder in found)} are there; keep one")
        return {split: found[0] for split, found in named.items() if found}
    names = [folder.name for folder in _subfolders(root)]
    if names and all(name.lower() in SPLIT_WORDS for name in names):
        raise UserError(
            f"{root}: {', '.join(names)} are splits and not classes, and there is no train/CLASS/IMAGE.jpg to train on"
            + _unfollowed(root)
        )
    return {}


def _subfolders(folder: Path) -> list[Path]:
    found = (entry for entry in folder.iterdir() if entry.is_dir() and not entry.is_symlink())
    return sorted(entry for entry in found if not entry.name.startswith("."))


def _links(folder: Path) -> list[str]:
    """The names of the links to folders, sorted."""
    found = (entry.name for entry in folder.iterdir() if entry.is_symlink() and entry.is_dir())
    return sorted(name for name in found if not name.startswith("."))


def _unfollowed(folder: Path) -> str:
    """What a message says of the links to folders."""
    links = _links(folder)
    return f" (links to folders are not followed: {', '.join(links)})" if links else ""


def class_folders(root: Path, folder: Path, notes: LeftOut) -> tuple[str, ...]:
    """The names of the classes, sorted; links are noted, relative to the root. Raises UserError where there is none."""
    classes = tuple(entry.name for entry in _subfolders(folder))
    if not classes:
        raise UserError(
            f"{folder}: no class folders; each class is a folder of images: {folder.name}/CLASS/IMAGE.jpg"
            + _unfollowed(folder)
        )
    notes.links += [(folder / name).relative_to(root).as_posix() for name in _links(folder)]
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

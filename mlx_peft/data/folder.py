"""A folder of images, a subfolder for each class."""

from __future__ import annotations

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mlx_peft.config import schema
from mlx_peft.config.errors import UserError
from mlx_peft.data.dataset import Dataset, FileImages, Split
from mlx_peft.data.reading import SUFFIXES, read_image
from mlx_peft.data.splits import hold_out

SPLIT_FOLDERS = {"train": ("train",), "val": ("val", "validation"), "test": ("test",)}
NAMED = 3
"""How many of the files that were left out a note names."""

CHECKED = 50_000
"""Every image of a class with at most so many is decoded once on opening, so that a broken one is found before
training; larger classes are checked as they are read, unless broken images are to be skipped."""


@dataclass
class _LeftOut:
    """What was not taken, for the notes."""

    others: list[str]
    links: list[str]
    broken: list[str]

    def notes(self) -> tuple[str, ...]:
        kinds = {
            "without the suffix of an image": self.others,
            "links to folders or out of the root": self.links,
            "unreadable": self.broken,
        }
        return tuple(
            f"left out, {kind}: {len(names)} ({', '.join(names[:NAMED])}{', ...' if len(names) > NAMED else ''})"
            for kind, names in kinds.items()
            if names
        )


def open_folder(config: schema.Data) -> Dataset:
    """Class folders, either below ``train``, ``val`` (or ``validation``) and ``test``, or directly below the root.

    Images lie at any depth of a class folder; names are sorted; hidden files, files without an image's suffix and links
    that leave the root are left out. Raises UserError for a missing root, an empty class, or splits with other classes.
    """
    root = config.root.resolve()
    if not root.is_dir():
        raise UserError(f"data.root: {config.root} is not a folder")
    left_out = _LeftOut([], [], [])
    own = _own_splits(root)
    if not own:
        classes = _classes(root, root)
        train = _read_split("train", root, root, classes, config, left_out)
        return hold_out("folder", classes, train, config.split, notes=left_out.notes())
    classes = _classes(root, own["train"])
    for folder in own.values():
        _same_classes(folder, classes, _classes(root, folder), own["train"])
    splits = {name: _read_split(name, root, folder, classes, config, left_out) for name, folder in own.items()}
    beside = sorted({folder.name for folder in _subfolders(root)} - {folder.name for folder in own.values()})
    notes = (f"left out, folders beside train: {', '.join(beside)}",) if beside else ()
    return hold_out(
        "folder",
        classes,
        splits["train"],
        config.split,
        val=splits.get("val"),
        test=splits.get("test"),
        notes=left_out.notes() + notes,
    )


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


def _classes(root: Path, folder: Path) -> tuple[str, ...]:
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


def _read_split(
    name: str, root: Path, folder: Path, classes: tuple[str, ...], config: schema.Data, left_out: _LeftOut
) -> Split:
    paths: list[str] = []
    labels: list[int] = []
    for label, class_name in enumerate(classes):
        found = sorted(_image_files(root, folder / class_name, left_out))
        if config.unreadable == "skip" or len(found) <= CHECKED:
            broken = _broken(root, found, config.threads)
            if broken and config.unreadable == "refuse":
                raise UserError(_refusal(broken))
            left_out.broken += broken
            found = [path for path in found if path not in broken]
        if not found:
            raise UserError(f"{folder / class_name}: no images in this class folder (taken: {', '.join(SUFFIXES)})")
        paths += found
        labels += [label] * len(found)
    return Split(name, FileImages(root, tuple(paths)), np.array(labels, np.int64))


def _image_files(root: Path, folder: Path, left_out: _LeftOut) -> Iterable[str]:
    """Paths relative to the root of the images at any depth of a folder."""
    for place, folders, files in os.walk(folder):
        here = Path(place)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        left_out.links += [_relative(root, here / name) for name in folders if (here / name).is_symlink()]
        for name in sorted(name for name in files if not name.startswith(".")):
            path = here / name
            if path.suffix.lower() not in SUFFIXES:
                left_out.others.append(_relative(root, path))
            elif path.is_symlink() and not path.resolve().is_relative_to(root):
                left_out.links.append(_relative(root, path))
            else:
                yield _relative(root, path)


def _relative(root: Path, path: Path) -> str:
    return path.relative_to(root).as_posix()


def _broken(root: Path, paths: list[str], threads: int) -> dict[str, str]:
    """The paths whose images cannot be read, with the reasons. All are tried: the split depends on the files alone."""

    def reason(path: str) -> str | None:
        try:
            read_image(root / path)
        except UserError as error:
            return str(error)
        return None

    with ThreadPoolExecutor(threads) as pool:
        reasons = list(pool.map(reason, paths))
    return {path: why for path, why in zip(paths, reasons, strict=True) if why is not None}


def _refusal(broken: dict[str, str]) -> str:
    """Names the first images that cannot be read, counts the others, and says what to do."""
    lines = [*broken.values()][:NAMED]
    if more := len(broken) - len(lines):
        lines.append(f"and {more} more in this class")
    return "\n  ".join(lines) + "\nmend or remove what cannot be read, or set data.unreadable: skip"

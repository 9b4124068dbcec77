"""A folder and all that lies below it, listed once: images, and what is not taken."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path

from mlx_peft.core.errors import UserError
from mlx_peft.data.leftout import LeftOut
from mlx_peft.data.litter import files_below, is_litter
from mlx_peft.data.looking import Watch, unwatched
from mlx_peft.data.reading import SUFFIXES


@dataclass(eq=False)
class Folder:
    """A folder of a tree: its path below the root ("" for the root itself), and what lies in it, each by name, sorted.

    others: files without an image's suffix; links: to folders, and out of the root; litter: images in litter.
    """

    path: str
    images: list[str] = field(default_factory=list)
    folders: dict[str, Folder] = field(default_factory=dict)
    others: list[str] = field(default_factory=list)
    links: list[str] = field(default_factory=list)
    litter: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]

    def below(self, name: str) -> str:
        """The path of what lies in it."""
        return f"{self.path}/{name}" if self.path else name

    def walk(self) -> Iterator[Folder]:
        """The folder, and all below it, each before those in it, by name."""
        waiting = [self]
        while waiting:
            folder = waiting.pop()
            yield folder
            waiting += reversed(folder.folders.values())

    @cached_property
    def size(self) -> int:
        """How many images there are at any depth."""
        return sum(len(folder.images) for folder in self.walk())

    @property
    def holding(self) -> dict[str, Folder]:
        """The folders in it that hold images at any depth."""
        return {name: folder for name, folder in self.folders.items() if folder.size}

    def paths(self) -> list[str]:
        """Of the images at any depth, sorted."""
        return sorted(folder.below(name) for folder in self.walk() for name in folder.images)

    def tell(self, notes: LeftOut, *, deep: bool = True) -> None:
        """Adds what is not taken of the folder, and of all below it if `deep`, to the notes."""
        for folder in self.walk() if deep else (self,):
            notes.others += map(folder.below, folder.others)
            notes.links += map(folder.below, folder.links)
            notes.litter += map(folder.below, folder.litter)


def scan(root: Path, path: str = "", watch: Watch = unwatched) -> Folder:
    """Lists a folder below the root (links resolved). Links to folders are not followed, nor links that leave the root.

    Raises UserError where a folder cannot be listed.
    """
    top, inside = Folder(path), _inside(root)
    waiting, what, found = [top], "listing images", 0
    watch(what, found, None)
    while waiting:
        folder = waiting.pop()
        place = root / folder.path
        try:
            with os.scandir(place) as entries:
                listed = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            raise UserError(f"{place}: cannot be listed ({error.strerror or error})") from error
        for entry in listed:
            _put(entry, folder, inside)
        waiting += folder.folders.values()
        found += len(folder.images)
        watch(what, found, None)
    return top


def _put(entry: os.DirEntry[str], folder: Folder, inside: Callable[[str], bool]) -> None:
    """Where an entry belongs in its folder."""
    name, image = entry.name, entry.name.lower().endswith(SUFFIXES)
    if is_litter(name):
        if entry.is_dir(follow_symlinks=False):
            folder.litter += [f"{name}/{path}" for path in files_below(entry.path, SUFFIXES, litter=True)]
        elif image:
            folder.litter.append(name)
    elif entry.is_dir():
        if entry.is_symlink():
            folder.links.append(name)
        else:
            folder.folders[name] = Folder(folder.below(name))
    elif not image:
        folder.others.append(name)
    elif entry.is_symlink() and not inside(entry.path):
        folder.links.append(name)
    else:
        folder.images.append(name)


def _inside(root: Path) -> Callable[[str], bool]:
    """Whether a link to a file leads to one below the root. Each folder that links lead into is resolved once."""

    @cache
    def within(folder: str) -> bool:
        return Path(folder).resolve().is_relative_to(root)

    def inside(link: str) -> bool:
        target = os.path.join(os.path.dirname(link), os.readlink(link))
        if os.path.islink(target):
            return Path(link).resolve().is_relative_to(root)
        folder, name = os.path.split(target)
        return name not in ("", ".", "..") and within(folder)

    return inside

"""A folder of images, a subfolder for each class; and what other sets of that form share with it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mlx_peft.config import schema
from mlx_peft.core.errors import UserError, suggest
from mlx_peft.core.text import printable
from mlx_peft.data.dataset import FileImages, Split
from mlx_peft.data.entry import Entry, Found, Variant
from mlx_peft.data.leftout import LeftOut, unlabelled, with_notes
from mlx_peft.data.levels import (
    INNER,
    OUTER,
    Classes,
    check_level,
    classes_in,
    elsewhere,
    innermost,
    split_folders,
    splits_in_classes,
    unwrapped,
    wrapped,
)
from mlx_peft.data.lists import printed
from mlx_peft.data.looking import Watch
from mlx_peft.data.names import says_nothing, spelled
from mlx_peft.data.reading import SUFFIXES
from mlx_peft.data.tree import Folder, scan

PARTED = (
    "data.variant: {}: folders above or below the classes are not kept in one split; where they are patients, list the "
    "images in a table with a column of them (data.name: csv)"
)


def read_folder(config: schema.Data, variant: Variant, watch: Watch) -> Found:
    """Class folders: below folders that are called like splits, around such, or alone; see ``data.levels``.

    Images lie at any depth of a class folder, but not all of them deeper than in it, unless the variant says which
    folder is the class; names are sorted. Litter, files without an image's suffix, links to folders and links that
    leave the root are left out; so is a split without labels, other than train. Raises UserError for a missing root,
    a class without images to train on, or no class folders.
    """
    root = existing(config.root)
    notes = LeftOut()
    everything = LeftOut(loose=notes.loose)
    with with_notes(everything.notes):
        tree = scan(root, watch=watch)
        tree.tell(everything)
        while not (own := split_folders(tree, root)) and (inside := wrapped(tree)) is not None:
            _pass(tree, notes)
            tree = inside
        more = []
        if tree.path:
            more = [f"the set is taken to be the folder {printable(tree.path)}, since no other holds class folders"]
            root = root / tree.path
            tree = scan(root, watch=watch)
            own = split_folders(tree, root)
        found, beside = _sorted_out(tree, own, root, variant.name, notes)
        more += beside
        if variant.name == Variant().name:
            more += check_level(found["train"], root)
        else:
            more.append(PARTED.format(variant.name))
        classes = _same_classes(found, own, root)
        splits = {name: _split(name, root, classes, inside) for name, inside in found.items()}
        return Found(classes, splits, (*notes.notes(), *more))


def existing(root: Path) -> Path:
    """The root, links resolved. Raises UserError where it is no folder."""
    if not root.is_dir():
        raise UserError(f"data.root: {root} is not a folder")
    return root.resolve()


def _pass(folder: Folder, notes: LeftOut) -> None:
    """Notes what lies in a folder that is neither a class nor in one."""
    folder.tell(notes, deep=False)
    notes.loose += map(folder.below, folder.images)


def _sorted_out(
    tree: Folder, own: dict[str, Folder], root: Path, variant: str, notes: LeftOut
) -> tuple[dict[str, Classes], list[str]]:
    """The class folders of each split (train always), and notes about what lies beside splits, or has no labels."""

    def classes_of(folder: Folder) -> Classes:
        return innermost(folder, root) if variant == INNER else classes_in(folder)

    tree.links = [name for name in tree.links if tree.below(name) not in {folder.path for folder in own.values()}]
    _pass(tree, notes)
    if not own:
        for folder in tree.folders.values():
            folder.tell(notes)
        if variant == Variant().name and (crossed := splits_in_classes(tree, root)):
            return crossed, []
        return {"train": classes_of(tree)}, []
    found, more = {}, []
    for name, folder in own.items():
        inside = unwrapped(folder)
        folder.tell(notes)
        if inside.holding or name == "train":
            notes.loose += map(inside.below, inside.images)
            found[name] = classes_of(inside)
            if inside is not folder and not says_nothing(inside.name):
                inner, outer = printed([inside.path, folder.path])
                more.append(f"the classes of {outer} are taken to be those in {inner}, the only folder of images there")
        else:
            more.append(unlabelled(folder.name, inside.size))
    used = {folder.name for folder in own.values()}
    if beside := [name for name in tree.folders if name not in used]:
        more.append(f"left out, folders beside {printable(own['train'].name)}: {', '.join(printed(beside))}")
    return found, more


def _same_classes(found: dict[str, Classes], own: dict[str, Folder], root: Path) -> tuple[str, ...]:
    """The classes, which are those of train. Another split need not have all of them, and has no others.

    Raises UserError, also where train has none, or one without images.
    """
    classes = _names(found["train"], root, own["train"].path if own else "")
    for split, inside in found.items():
        where = root / own[split].path if own else root
        more = [name for name, folders in inside.items() if name not in classes and any(map(_size, folders))]
        if more:
            none = (
                "" if {*inside} & {*classes} else "; where its images have no labels, put them into it without folders"
            )
            raise UserError(f"{where}: has {_listed(more)}, which train does not{suggest(more[0], classes) or none}")
    return classes


def _size(folder: Folder) -> int:
    return folder.size


def _linked(folder: Folder) -> bool:
    return any(inside.links for inside in folder.walk())


def _listed(names: list[str]) -> str:
    return ("class " if len(names) == 1 else "classes ") + ", ".join(map(repr, names))


def _names(found: Classes, root: Path, place: str) -> tuple[str, ...]:
    """The names of the classes that are trained on, sorted. Raises UserError where there are none, or one has no
    images."""
    where, linked = root / place, "copy the images that its links lead to into it: links are not followed"
    if not found:
        raise UserError(
            f"{where}: no class folders; each class is a folder of images: {where.name}/CLASS/IMAGE.jpg"
            + elsewhere(where)
        )
    for folders in found.values():
        if not any(map(_size, folders)):
            remedy = linked if any(map(_linked, folders)) else "remove it if it is no class"
            raise UserError(
                f"{printable(str(root / folders[0].path))}: no images in this class folder (taken: "
                f"{', '.join(SUFFIXES)}); {remedy}"
            )
    return tuple(found)


def _split(name: str, root: Path, classes: Sequence[str], found: Classes) -> Split:
    """The images of the class folders, under paths relative to the root; sorted within each class, accents in one
    spelling."""
    images = [
        sorted((path for folder in found.get(label, ()) for path in folder.paths()), key=spelled) for label in classes
    ]
    labels = np.repeat(np.arange(len(classes)), list(map(len, images)))
    return Split(name, FileImages(root, tuple(path for listed in images for path in listed)), labels)


def read_classes(
    name: str, root: Path, place: str, notes: LeftOut, watch: Watch, classes: Sequence[str] = ()
) -> tuple[tuple[str, ...], Split]:
    """A split of a set that others have published: class folders in a place below the root, which is what it is.

    Returns the classes, those that are given or all that there are, and the images. Raises UserError where there are
    none, or one has no images.
    """
    with with_notes(notes.notes):
        tree = scan(root, place, watch)
        _pass(tree, notes)
        for folder in tree.folders.values():
            folder.tell(notes)
        found = classes_in(tree)
        chosen = {label: found.get(label, [Folder(tree.below(label))]) for label in classes} or found
        names = _names(chosen, root, place)
        return names, _split(name, root, names, chosen)


ENTRIES = {
    "folder": Entry(
        read=read_folder,
        description="images of any size: a folder for each class, with or without train/val/test",
        source="yours",
        licence="yours",
        variants=(
            Variant(description="a folder for each class, images in it"),
            Variant(OUTER, "folders lie in the class folders: all images below one are of its class"),
            Variant(INNER, "class folders lie in other folders: the class is the folder that holds the image"),
        ),
    )
}

"""Which folders of a tree are splits and which are classes: recognised by what they are called and what lies in them,
or refused. Nothing is guessed that would change what an image's class is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import chain
from pathlib import Path

from mlx_peft.core.errors import UserError
from mlx_peft.core.text import printable
from mlx_peft.data.entry import SPLITS, examples
from mlx_peft.data.lists import printed
from mlx_peft.data.names import is_container, plain_split, preferred, says_nothing, spelled, split_of
from mlx_peft.data.tree import Folder, scan

Classes = dict[str, list[Folder]]
"""The folders of each class, by its name in one spelling."""

OUTER, INNER = "outer", "inner"
"""Where folders lie in class folders: the class is the outer one, or the one that holds the image."""


def split_folders(tree: Folder, root: Path) -> dict[str, Folder]:
    """The folders below the root that are its splits; none where they are its classes.

    They are splits where one of them is called like ``train`` and holds folders with images: ``train`` and ``Testing``,
    ``training_set`` and ``test_set``, ``seg_train`` and ``seg_test``. Links to folders inside the root count. Raises
    UserError at two folders for a split, or where there is nothing but splits and none to train on.
    """
    folders = tree.folders | {
        name: scan(root, tree.below(name))
        for name in tree.links
        if split_of(name) and (root / tree.below(name)).resolve().is_relative_to(root)
    }
    where = root / tree.path
    alike: dict[str, dict[str, list[str]]] = {}
    for name in sorted(folders):
        if found := split_of(name):
            alike.setdefault(found[1], {}).setdefault(found[0], []).append(name)
    for splits in alike.values():
        splits.update({split: preferred(names) for split, names in splits.items()})
    several = {rest: splits for rest, splits in alike.items() if not rest or ("train" in splits and len(splits) > 1)}
    chosen = {rest: splits for rest, splits in several.items() if _with_classes(splits, folders)}
    if len(chosen) > 1:
        first = [_listed(splits) for splits in chosen.values()]
        raise UserError(f"{where}: {' and '.join(first)} are splits of several sets; set data.root to a folder of one")
    for splits in chosen.values():
        for names in splits.values():
            if len(names) > 1:
                raise UserError(f"{where}: {' and '.join(names)} are folders for the same split; keep one")
        return {split: folders[splits[split][0]] for split in SPLITS if split in splits}
    named = _by_split(tree)
    for splits in (*several.values(), *([named] if len(named) > 1 else [])):
        if len(splits) > 1 or {*tree.holding} <= {*chain(*splits.values())}:
            raise UserError(
                f"{where}: {_listed(splits)} are splits and not classes, and there is no train/CLASS/IMAGE.jpg to "
                f"train on{elsewhere(where)}"
            )
    return {}


def _by_split(tree: Folder) -> dict[str, list[str]]:
    """The folders that hold images by the split that each says, whatever else it says (``train``, ``test1``).

    None where one of them says no split.
    """
    found: dict[str, list[str]] = {}
    for name in tree.holding:
        if (words := split_of(name)) is None:
            return {}
        found.setdefault(words[0], []).append(name)
    return found


def _with_classes(splits: Mapping[str, list[str]], folders: Mapping[str, Folder]) -> bool:
    return any(folders[name].holding for name in splits.get("train", ()))


def _listed(splits: Mapping[str, list[str]]) -> str:
    return ", ".join(printed(sorted(chain(*splits.values()))))


def elsewhere(root: Path) -> str:
    """What a message says of tables that lie there."""
    tables = sorted(path.name for path in root.iterdir() if path.suffix.lower() in (".csv", ".tsv"))
    return f"; there is {', '.join(tables[:3])}: data.name: csv reads a table of paths and labels" if tables else ""


def wrapped(folder: Folder) -> Folder | None:
    """The only folder of images in a folder, where it is no class: it holds folders itself and no image, or is called
    ``images`` or like a split."""
    if len(folder.holding) != 1:
        return None
    (inside,) = folder.holding.values()
    return inside if not inside.images or (not folder.images and says_nothing(inside.name)) else None


def unwrapped(folder: Folder) -> Folder:
    """The folder that the wrappers are around; the folder itself where there are none."""
    while (inside := wrapped(folder)) is not None:
        folder = inside
    return folder


def classes_in(folder: Folder) -> Classes:
    """The folders in a folder, by the class that each is of: those without images too."""
    found: Classes = {}
    for name, inside in folder.folders.items():
        found.setdefault(spelled(name), []).append(inside)
    return dict(sorted(found.items()))


def innermost(folder: Folder, root: Path) -> Classes:
    """The folders below a folder that hold images themselves, by name; ``images`` is of the class around it.

    Raises UserError where splits are among them.
    """
    found: Classes = {}
    around = {folder.path: ""}
    for outer in folder.walk():
        for name, inside in outer.folders.items():
            if plain_split(name) and inside.size:
                raise UserError(f"{root / inside.path} is called like a split: set data.root to the folder around it")
            own = around[outer.path]
            around[inside.path] = own if own and is_container(name) else spelled(name)
        if outer.images and outer is not folder:
            found.setdefault(around[outer.path], []).append(replace(outer, folders={}))
    return dict(sorted(found.items()))


def splits_in_classes(tree: Folder, root: Path) -> dict[str, Classes]:
    """``CLASS/train/IMAGE``: each split's classes, where every class holds splits and nothing else; else none.

    Raises UserError where these hold folders of images in their turn: ``fold_1/train/CLASS/IMAGE``.
    """
    found: dict[str, Classes] = {}
    for name, folder in tree.holding.items():
        splits = {inside: plain_split(inside) for inside in folder.holding}
        if folder.images or None in splits.values():
            return {}
        for inside, split in splits.items():
            found.setdefault(split or "", {}).setdefault(spelled(name), []).append(folder.folders[inside])
    if "train" not in found:
        return {}
    if any(_between(folders) for folders in found["train"].values()):
        raise UserError(f"{root}: {examples([*tree.holding])} have splits of their own; set data.root to one of them")
    return {split: dict(sorted(found[split].items())) for split in SPLITS if split in found}


def check_level(classes: Classes, where: Path) -> tuple[str, ...]:
    """That the folders of the classes are not those of something else; notes where some may be.

    Raises UserError where every image lies a folder below its class, or where a class holds splits, or folders that are
    called like the classes beside it.
    """
    deep = {name: inside for name, folders in classes.items() if (inside := _between(folders))}
    for name, inside in deep.items():
        place = printable(str(where / name))
        if len({split for word in inside if (split := plain_split(word))}) > 1:
            raise UserError(
                f"{place}: {examples(inside)} in it are splits: set data.root to it, or make it train/CLASS/IMAGE.jpg"
            )
        if split_of(name):
            raise UserError(f"{place} is called like a split, and no folder beside it is called like train")
        if twice := sorted({spelled(word) for word in inside} & {*classes} - {name}):
            raise UserError(
                f"{place}: the folders {examples(twice)} in it are called like the classes beside it: is it a "
                "second copy of the set? Move it elsewhere"
            )
    if deep and len(deep) == len(classes):
        first = ", ".join(f"{name!r} holds {examples(inside)}" for name, inside in list(deep.items())[:2])
        raise UserError(
            f"{where}: every image lies a folder below its class: {first}. Where {examples([*deep])} are the classes, "
            f"set data.variant: {OUTER}; where the folders in them are, set data.variant: {INNER}; where one of "
            "them is the set, set data.root to it"
        )
    like = [f"{name!r} is taken for a class, though it is called like a split" for name in classes if plain_split(name)]
    return (
        *like,
        *(f"all images of class {name!r} lie in folders in it: {examples(inside)}" for name, inside in deep.items()),
    )


def _between(folders: Iterable[Folder]) -> list[str]:
    """The names of the folders that part the images of a class; none where some lie in it, or where they do not part
    them: ``images``, or one called like the class."""
    found: set[str] = set()
    for folder in folders:
        inside, own = folder, spelled(folder.name)
        while not inside.images and len(inside.holding) == 1:
            (only,) = inside.holding.values()
            if not says_nothing(only.name) and spelled(only.name) != own:
                break
            inside = only
        if inside.images or all(map(is_container, inside.holding)):
            return []
        found.update(inside.holding)
    return sorted(found)

"""Holding out validation and test images: stratified, and a pure function of identifiers, labels and a seed."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator

import numpy as np

from mlx_peft.config import schema
from mlx_peft.core.errors import UserError
from mlx_peft.core.text import counted
from mlx_peft.data.dataset import Dataset, Split
from mlx_peft.data.names import spelled
from mlx_peft.data.order import rows_of_each


def hold_out(
    name: str,
    classes: tuple[str, ...],
    train: Split,
    config: schema.Split,
    *,
    val: Split | None = None,
    test: Split | None = None,
    broken: Collection[int] = (),
) -> Dataset:
    """The data set, its missing validation and test splits carved out of the training images.

    Within each class images are ranked by the SHA-256 of seed and identifier; the first go to test, the next to
    validation, each split's share rounded to the nearest but at least one, as long as one image is left to train on.
    Where images have not one class each, the task says what takes its place: see ``Task.strata``.
    Where the training images are in groups, so are they ranked and moved: by their first identifier, all to the same
    split, a group counting for the class that most of its images have; one that would pass the share is left out of it,
    unless it is the only one. The order of the images is kept. A share of 0 leaves the split None. Raises UserError
    where a share is asked for and no class has an image, or a group, to spare.

    The rows that are ``broken`` are left out once all is split: were they left out before, an image that a run was
    trained on would take the place of one in test that can no longer be read.
    """
    shares = {"test": config.test if test is None else 0.0, "val": config.val if val is None else 0.0}
    held: dict[str, list[int]] = {part: [] for part in shares}
    kept: list[int] = []
    for units in _by_class(train, config.seed):
        images = sum(map(len, units))
        for part, share in shares.items():
            count = 0 if share == 0 else max(1, int(share * images + 0.5))
            taken = _taken(units, count)
            held[part] += [row for index in taken for row in units[index]]
            units = [unit for index, unit in enumerate(units) if index not in taken]
        kept += [row for unit in units for row in unit]
    for part, share in shares.items():
        if share and not held[part]:
            what, more = ("an image", "") if train.groups is None else ("a group", ", or data.columns.group to none")
            raise UserError(
                f"data.split.{part} is {share}, but no class of {name} has {what} to spare "
                f"({counted(train.size, 'image')} in {counted(len(classes), 'class')}); set it to 0{more}"
            )
    left = {part: np.array(sorted({*rows} - {*broken}), np.int64) for part, rows in {**held, "train": kept}.items()}
    if empty := [part for part, rows in {**held, "train": kept}.items() if rows and not left[part].size]:
        raise UserError(f"{name}: no readable images in {empty[0]}")
    carved = {part: train.take(left[part], part) if rows else None for part, rows in held.items()}
    return Dataset(
        name=name,
        classes=classes,
        train=train.take(left["train"], "train"),
        val=val or carved["val"],
        test=test or carved["test"],
    )


def _by_class(train: Split, seed: int) -> Iterator[list[list[int]]]:
    """Of each class, or what the task has in its place, the rows of what moves together, ranked."""
    identifiers, labels = train.images.identifiers, train.task.strata(train.labels)
    if train.groups is None:
        for alike in rows_of_each(labels):
            yield [[row] for row in sorted(alike.tolist(), key=lambda row: _rank(seed, identifiers[row]))]
        return
    members: dict[object, list[int]] = {}
    for row, group in enumerate(train.groups.tolist()):
        members.setdefault(group, []).append(row)
    units: list[list[list[int]]] = [[] for _ in range(int(labels.max()) + 1)]
    for rows in members.values():
        units[np.bincount(labels[rows]).argmax()].append(rows)
    for found in units:
        yield sorted(found, key=lambda rows: _rank(seed, min(spelled(identifiers[row]) for row in rows)))


def _taken(units: list[list[int]], count: int) -> set[int]:
    """The first units that make up at most `count` rows together; one at least if any is wanted; never the last."""
    taken: set[int] = set()
    rows = 0
    for index, unit in enumerate(units):
        if rows + len(unit) <= count and len(taken) < len(units) - 1:
            taken.add(index)
            rows += len(unit)
            if rows == count:
                break
    if count and not taken and len(units) > 1:
        taken.add(min(range(len(units)), key=lambda index: len(units[index])))
    return taken


def _rank(seed: int, identifier: str) -> bytes:
    return hashlib.sha256(f"{seed}\0{spelled(identifier)}".encode("utf-8", "surrogateescape")).digest()

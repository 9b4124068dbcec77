"""Holding out validation and test images: stratified, and a pure function of identifiers, labels and a seed."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Sequence

import numpy as np

from mlx_peft.config import schema
from mlx_peft.core.errors import UserError
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
    parts: dict[str, list[np.ndarray]] = {part: [] for part in (*shares, "train")}
    for rows, sizes in _by_class(train, config.seed):
        free = np.ones(len(sizes), bool)
        for part, share in shares.items():
            count = max(1, int(share * len(rows) + 0.5)) if share else 0
            units, chosen = np.flatnonzero(free), np.zeros(len(sizes), bool)
            chosen[units[_taken(sizes[units].tolist(), count)]] = True
            free &= ~chosen
            parts[part].append(rows[np.repeat(chosen, sizes)])
        parts["train"].append(rows[np.repeat(free, sizes)])
    all_rows = {part: np.sort(np.concatenate([np.empty(0, np.int64), *found])) for part, found in parts.items()}
    for part, share in shares.items():
        if share and not len(all_rows[part]):
            what, more = ("an image", "") if train.groups is None else ("a group", ", or data.columns.group to none")
            raise UserError(
                f"data.split.{part} is {share}, but no class of {name} has {what} to spare "
                f"({train.size} images in {len(classes)} classes); set it to 0{more}"
            )
    left = {part: rows[~np.isin(rows, np.array([*broken], np.int64))] for part, rows in all_rows.items()}
    if empty := [part for part, rows in all_rows.items() if len(rows) and not len(left[part])]:
        raise UserError(f"{name}: no image of {empty[0]} can be read")
    carved = {part: train.take(left[part], part) if len(all_rows[part]) else None for part in shares}
    return Dataset(
        name=name,
        classes=classes,
        train=train.take(left["train"], "train"),
        val=val or carved["val"],
        test=test or carved["test"],
    )


def _by_class(train: Split, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Of each class, or what the task has in its place, the rows by rank, int64 ``(n,)``, what moves together side by
    side; and how many rows each of these units has, int64 ``(units,)``."""
    identifiers, labels = train.images.identifiers, train.task.strata(train.labels)
    if train.groups is None:
        for alike in rows_of_each(labels):
            ranked = sorted(alike.tolist(), key=lambda row: _rank(seed, spelled(identifiers[row])))
            yield np.array(ranked, np.int64), np.ones(len(ranked), np.int64)
        return
    codes: dict[object, int] = {}
    group = np.array([codes.setdefault(name, len(codes)) for name in train.groups.tolist()], np.int64)
    first = _firsts(identifiers, group.tolist(), len(codes))
    members = np.split(np.argsort(group, kind="stable"), np.cumsum(np.bincount(group))[:-1])
    for units in rows_of_each(_commonest(group, labels)):
        ranked = sorted(units.tolist(), key=lambda unit: _rank(seed, first[unit]))
        rows = [members[unit] for unit in ranked]
        yield np.concatenate([np.empty(0, np.int64), *rows]), np.array([*map(len, rows)], np.int64)


def _firsts(identifiers: Sequence[str], group: Sequence[int], groups: int) -> list[str]:
    """Of each group the first of its identifiers, in one spelling, by the alphabet."""
    first: list[str | None] = [None] * groups
    for identifier, number in zip(identifiers, group, strict=True):
        name, before = spelled(identifier), first[number]
        if before is None or name < before:
            first[number] = name
    return [name or "" for name in first]


def _commonest(group: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Of each group the label that most of its images have, the smallest of several, int64 ``(groups,)``."""
    pairs, counts = np.unique(group * (int(labels.max()) + 1) + labels, return_counts=True)
    number, label = np.divmod(pairs, int(labels.max()) + 1)
    order = np.lexsort((label, -counts, number))
    return np.asarray(label[order[np.flatnonzero(np.diff(number[order], prepend=-1))]])


def _taken(sizes: Sequence[int], count: int) -> list[int]:
    """The first units that make up at most `count` rows together; one at least if any is wanted; never the last."""
    taken: list[int] = []
    rows = 0
    for index, size in enumerate(sizes):
        if rows == count:
            break
        if rows + size <= count and len(taken) < len(sizes) - 1:
            taken.append(index)
            rows += size
    if count and not taken and len(sizes) > 1:
        taken.append(min(range(len(sizes)), key=sizes.__getitem__))
    return taken


def _rank(seed: int, name: str) -> bytes:
    return hashlib.sha256(f"{seed}\0{name}".encode("utf-8", "surrogateescape")).digest()

"""A data set opened: read, checked against what it states about itself, and split."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np

from mlx_peft.config import schema
from mlx_peft.core.errors import UserError
from mlx_peft.data.dataset import ADVICE, ArrayImages, Dataset, Split
from mlx_peft.data.duplicates import clusters, glance, pixel_hash
from mlx_peft.data.entry import Entry, Found, Variant, named
from mlx_peft.data.labels import counts
from mlx_peft.data.leftout import told
from mlx_peft.data.lists import left_out
from mlx_peft.data.registry import find
from mlx_peft.data.splits import hold_out
from mlx_peft.data.strangers import kind_in, pointers

CHECKED = 50_000
"""A set of the user's own with at most so many files is decoded once on opening, so that a broken one is found before
training. Larger ones, and sets whose published size was found, are checked as they are read: `data check` does it all.
"""

NAMED = 3
"""How many broken images a message names."""


def open_dataset(config: schema.Data) -> Dataset:
    """The data set that a configuration names. Raises UserError where it is unknown, missing, damaged or another."""
    try:
        entry = find(config.name)
    except UserError as error:
        raise UserError(f"data.name: {error}") from None
    return open_entry(entry, config)


def open_entry(entry: Entry, config: schema.Data, *, decode: bool = True) -> Dataset:
    """A data set, read, checked against what the entry states, and split.

    Without `decode` no image is tried first, whatever the configuration says. Raises UserError as ``open_dataset``.
    """
    variant = entry.variant(config.name, config.variant)
    if config.columns != schema.Columns() and not entry.columns:
        raise UserError(f"data.columns: {config.name} is no table; leave it out")
    if entry.multi_label and config.sampling != "instance":
        raise UserError(
            f"data.sampling: {config.sampling} draws images by their class, and an image of {config.name} may have "
            "several classes or none: leave it out; data.class_weights makes up for rare ones"
        )
    split = _shares(config, variant)
    with told(lambda: pointers(config.root)):
        found = entry.read(config, variant)
    notes = list(found.notes)
    with told(lambda: (*notes, *pointers(config.root))):
        entry.check(found, variant, f"{config.name} in {config.root}")
        if decode:
            found = _readable(found, entry, config)
            notes = list(found.notes)
        train = _grouped(found.splits["train"], entry, config, tolerant=not decode)
        if train.groups is not None:
            notes.append(f"{train.size:,} images in {len(np.unique(train.groups)):,} groups that are never parted")
        if variant.shares is None:
            notes += _not_used(config.split, found)
        dataset = hold_out(
            config.name,
            found.classes,
            train,
            split,
            val=found.splits.get("val"),
            test=found.splits.get("test"),
        )
        notes += _without_images(dataset, entry, f"{config.name} in {config.root}")
        return replace(dataset, notes=tuple(notes))


def _shares(config: schema.Data, variant: Variant) -> schema.Split:
    """What is held out: what the variant fixes, or what the configuration says.

    Raises UserError where the configuration asks for something else than is fixed. What it leaves at a default it does
    not ask for: a finished run's configuration writes all of them down.
    """
    if variant.shares is None:
        return config.split
    fixed = {"val": 0.0, "test": 0.0, **variant.shares}
    for name, share in fixed.items():
        asked = getattr(config.split, name)
        if asked not in (share, schema.Split.model_fields[name].default):
            raise UserError(
                f"data.split.{name}: {asked}, and {config.name}, variant {variant.name}, fixes what is held out "
                f"({variant.description}); leave it out"
            )
    return config.split.model_copy(update=fixed)


def _not_used(split: schema.Split, found: Found) -> tuple[str, ...]:
    """Notes about shares that are asked for where the set has such a split of its own."""
    return tuple(
        f"data.split.{name} is not used: the set has its own {name} split"
        for name in sorted({"val", "test"} & split.model_fields_set & set(found.splits))
        if getattr(split, name) != schema.Split.model_fields[name].default
    )


def _without_images(dataset: Dataset, entry: Entry, where: str) -> tuple[str, ...]:
    """Notes about the classes that a split has no images of.

    Raises UserError where a set of the user's own has images of a class in val or test and none to train on.
    """
    number = len(dataset.classes)
    absent = {name: np.flatnonzero(counts(split.labels, number) == 0) for name, split in dataset.splits.items()}

    def without(labels: np.ndarray) -> str:
        return f"no images of {named([dataset.classes[label] for label in labels])} in"

    for name, labels in absent.items():
        only = np.setdiff1d(absent["train"], labels)
        if only.size and not entry.published:
            raise UserError(
                f"{where}: {without(only)} train, and some in {name}: move images to train or leave the class out; "
                "where its only group was held out, set another data.split.seed"
            )
    return tuple(f"{without(labels)} {name}" for name, labels in absent.items() if labels.size)


def _readable(found: Found, entry: Entry, config: schema.Data) -> Found:
    """All images tried, where the configuration or the size of the set asks for it; the broken refused or left out."""
    splits = {name: split for name, split in found.splits.items() if not isinstance(split.images, ArrayImages)}
    small = not entry.published and sum(split.size for split in splits.values()) <= CHECKED
    if not splits or not (small or config.unreadable == "skip"):
        return found
    good: dict[str, Split] = {}
    broken: list[str] = []
    kinds: Counter[str] = Counter()
    for name, split in splits.items():
        reasons = _reasons(split, config.threads)
        if reasons and config.unreadable == "refuse":
            raise UserError(_refusal([*reasons.values()], name))
        identifiers = split.images.identifiers
        broken += [identifiers[row] for row in reasons]
        kinds.update(kind for reason in reasons.values() if (kind := kind_in(reason)))
        good[name] = split.take(np.array([row for row in range(split.size) if row not in reasons], np.int64), name)
    notes = [left_out("unreadable", broken)] if broken else []
    notes += [f"{count} of the unreadable files: each is {kind}" for kind, count in kinds.most_common()]
    with told(lambda: notes):
        for label in np.setdiff1d(splits["train"].labels, good["train"].labels) if "train" in good else ():
            raise UserError(f"{config.root}: no readable images of class {found.classes[label]!r} in train")
        if empty := [name for name, split in good.items() if not split.size]:
            raise UserError(f"{config.root}: no readable images in {empty[0]}")
    return replace(found, splits={**found.splits, **good}, notes=(*found.notes, *notes))


def _reasons(split: Split, threads: int) -> dict[int, str]:
    """The rows whose images cannot be read, with the reasons. All are tried: the split depends on the files alone."""

    def reason(row: int) -> str | None:
        try:
            split.images.read(row)
        except UserError as error:
            return str(error).removesuffix(ADVICE)
        return None

    with ThreadPoolExecutor(threads) as pool:
        reasons = pool.map(reason, range(split.size))
        return {row: why for row, why in enumerate(reasons) if why is not None}


def _refusal(reasons: list[str], split: str) -> str:
    """Names the first images that cannot be read, counts the others, and says what to do."""
    lines = reasons[:NAMED]
    if more := len(reasons) - len(lines):
        lines.append(f"and {more} more in {split}")
    return "\n  ".join(lines) + ADVICE.replace("; ", "\n")


def _grouped(train: Split, entry: Entry, config: schema.Data, *, tolerant: bool) -> Split:
    """The training images with the groups that are never parted.

    Raises UserError at an image that cannot be read; if `tolerant`, it is a group of its own.
    """
    by = config.split.group_by or ("duplicates" if entry.near_duplicates else None)
    if by == "none":
        return replace(train, groups=None)
    if by is None:
        return train
    if train.groups is not None:
        raise UserError("data.split.group_by: duplicates, but the set has groups of its own; leave it out")

    def hashes(row: int) -> tuple[bytes | None, bytes | None]:
        try:
            image = train.images.read(row)
        except UserError:
            if not tolerant:
                raise
            return None, None
        return pixel_hash(image), glance(image)

    with ThreadPoolExecutor(config.threads) as pool:
        pixels, seen = zip(*pool.map(hashes, range(train.size)), strict=True)
    return replace(train, groups=clusters(pixels, seen))

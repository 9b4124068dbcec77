"""A data set opened: read, checked against what it states about itself, and split."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from mlx_peft.config import schema
from mlx_peft.core.errors import UserError
from mlx_peft.core.sought import sought
from mlx_peft.core.text import counted
from mlx_peft.data.dataset import Dataset, Split
from mlx_peft.data.depth import shallow
from mlx_peft.data.duplicates import clusters
from mlx_peft.data.entry import Entry, Found, Variant, examples
from mlx_peft.data.leftout import with_notes
from mlx_peft.data.limits import limits
from mlx_peft.data.looking import Watch, unwatched
from mlx_peft.data.registry import find
from mlx_peft.data.splits import hold_out
from mlx_peft.data.strangers import pointers
from mlx_peft.data.tried import as_read, looked_at, readable


def open_dataset(config: schema.Data, watch: Watch = unwatched) -> Dataset:
    """The data set that a configuration names. Raises UserError where it is unknown, missing, damaged or another.

    ``watch`` is told of what takes its time.
    """
    try:
        entry = find(config.name)
    except UserError as error:
        raise UserError(f"data.name: {error}") from None
    return open_entry(entry, config, watch=watch)


def open_entry(entry: Entry, config: schema.Data, *, decode: bool = True, watch: Watch = unwatched) -> Dataset:
    """A data set, read, checked against what the entry states, and split.

    Without `decode` no image is tried first, whatever the configuration says. Raises UserError as ``open_dataset``.
    """
    limits()  # so that a wrong one is not taken for as many broken images
    variant = entry.variant(config.name, config.variant)
    if config.columns != schema.Columns() and not entry.columns:
        raise UserError(f"data.columns: {config.name} is no table; leave it out")
    entry.task.check_options(config)
    split = _shares(config, variant)
    with sought(config.root, "data.root"), with_notes(lambda: pointers(config.root)):
        found = entry.read(config, variant, watch)
    notes = list(found.notes)
    with with_notes(lambda: (*notes, *pointers(config.root))):
        entry.check(found, variant, f"{config.name} in {config.root}")
        broken: list[int] = []
        if decode:
            found, broken = readable(found, entry, config, watch)
            notes = list(found.notes)
        tolerant = not decode or bool(broken) or as_read(found)
        train = _grouped(found.splits["train"], entry, config, tolerant=tolerant, watch=watch)
        if train.groups is not None:
            whole = np.delete(train.groups, broken)
            notes.append(f"{counted(len(whole), 'image')} in {counted(len(np.unique(whole)), 'group')}, never parted")
        if variant.shares is None:
            notes += _not_used(config.split, found)
        dataset = hold_out(
            config.name,
            found.classes,
            train,
            split,
            val=found.splits.get("val"),
            test=found.splits.get("test"),
            broken=broken,
        )
        notes += shallow(dataset.train.images)
        notes += _without_images(dataset, entry, f"{config.name} in {config.root}")
        dataset = replace(dataset, notes=tuple(notes))
        return dataset.tolerant() if decode and as_read(found) else dataset


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
                f"data.split.{name} is {asked}, but the variant {variant.name} of {config.name} fixes what is held out "
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
    absent = {
        name: np.flatnonzero(split.task.counts(split.labels, number) == 0) for name, split in dataset.splits.items()
    }

    def without(labels: np.ndarray) -> str:
        return f"no images of {examples([dataset.classes[label] for label in labels])} in"

    for name, labels in absent.items():
        only = np.setdiff1d(absent["train"], labels)
        if only.size and not entry.published:
            raise UserError(
                f"{where}: there are {without(only)} train, and some in {name}: move images to train or leave the "
                "class out; where its only group was held out, set another data.split.seed"
            )
    return tuple(f"{without(labels)} {name}" for name, labels in absent.items() if labels.size)


def _grouped(train: Split, entry: Entry, config: schema.Data, *, tolerant: bool, watch: Watch) -> Split:
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

    return replace(train, groups=clusters(looked_at(train.images, config, tolerant=tolerant, watch=watch)))

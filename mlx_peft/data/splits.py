"""Holding out validation and test images: stratified, and a pure function of identifiers, labels and a seed."""

from __future__ import annotations

import hashlib

import numpy as np

from mlx_peft.config import schema
from mlx_peft.config.errors import UserError
from mlx_peft.data.dataset import Dataset, Split


def hold_out(
    name: str,
    classes: tuple[str, ...],
    train: Split,
    config: schema.Split,
    *,
    val: Split | None = None,
    test: Split | None = None,
    notes: tuple[str, ...] = (),
) -> Dataset:
    """The data set, its missing validation and test splits carved out of the training images.

    Within each class images are ranked by the SHA-256 of seed and identifier; the first go to test, the next to
    validation, each split's share rounded to the nearest but at least one, as long as one image is left to train on.
    The order of the images is kept. A share of 0 leaves the split None. Raises UserError where a share is asked for
    and no class has an image to spare.
    """
    shares = {"test": config.test if test is None else 0.0, "val": config.val if val is None else 0.0}
    held: dict[str, list[int]] = {part: [] for part in shares}
    kept: list[int] = []
    identifiers = train.images.identifiers
    for label in range(len(classes)):
        rows = np.flatnonzero(train.labels == label).tolist()
        rows.sort(key=lambda row: _rank(config.seed, identifiers[row]))
        for part, share in shares.items():
            count = 0 if share == 0 else max(1, int(share * _count(train, label) + 0.5))
            count = max(0, min(count, len(rows) - 1))
            held[part] += rows[:count]
            rows = rows[count:]
        kept += rows
    for part, share in shares.items():
        if share and not held[part]:
            raise UserError(
                f"data.split.{part} is {share}, but no class of {name} has an image to spare "
                f"({train.size} images in {len(classes)} classes); set it to 0"
            )
    carved = {part: train.take(np.array(sorted(rows)), part) if rows else None for part, rows in held.items()}
    return Dataset(
        name=name,
        classes=classes,
        train=train.take(np.array(sorted(kept)), "train"),
        val=val or carved["val"],
        test=test or carved["test"],
        notes=notes,
    )


def _rank(seed: int, identifier: str) -> bytes:
    return hashlib.sha256(f"{seed}\0{identifier}".encode("utf-8", "surrogateescape")).digest()


def _count(split: Split, label: int) -> int:
    return int(np.count_nonzero(split.labels == label))

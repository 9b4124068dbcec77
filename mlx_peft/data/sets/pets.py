"""The Oxford-IIIT Pets (Parkhi et al. 2012): 37 breeds of cats and dogs."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mlx_peft.config import schema
from mlx_peft.core.errors import UserError
from mlx_peft.data.dataset import Split
from mlx_peft.data.entry import Entry, Found, Variant
from mlx_peft.data.lists import integer, listed_split, locate, read_rows
from mlx_peft.data.looking import Watch
from mlx_peft.data.sets.folder import existing

SOURCE = "https://www.robots.ox.ac.uk/~vgg/data/pets/"
PLACES = (".", "oxford-iiit-pet")


def read_pets(config: schema.Data, variant: Variant, watch: Watch) -> Found:
    """``annotations/{trainval,test}.txt``, lines ``Abyssinian_100 1 1 1``: image, class from 1, species, breed.

    A class has the name of its images. Raises UserError where a list or an image is missing, or two names share a
    class.
    """
    root = locate(existing(config.root), PLACES, "annotations/trainval.txt", config.name, SOURCE)
    names: dict[int, str] = {}
    splits = {
        name: _split(name, root, root / "annotations" / f"{listed}.txt", names, watch)
        for name, listed in (("train", "trainval"), ("test", "test"))
    }
    return Found(tuple(names[label] for label in sorted(names)), splits)


def _split(name: str, root: Path, source: Path, names: dict[int, str], watch: Watch) -> Split:
    rows = read_rows(source, 2)
    labels = [integer(row[1], source, number) - 1 for number, row in enumerate(rows)]
    for row, label in zip(rows, labels, strict=True):
        breed = row[0].rpartition("_")[0]
        if names.setdefault(label, breed) != breed:
            raise UserError(f"{source}: class {label + 1} has two names, {names[label]!r} and {breed!r}")
    return listed_split(name, root, (f"images/{row[0]}.jpg" for row in rows), np.array(labels, np.int64), source, watch)


ENTRIES = {
    "oxford-iiit-pet": Entry(
        read=read_pets,
        description="7,349 cats and dogs in 37 breeds, 3,669 of them for the test",
        source=SOURCE,
        licence="CC BY-SA 4.0",
        classes=37,
        variants=(Variant("official", "trainval and test as published", {"train": 3_680, "test": 3_669}),),
    )
}

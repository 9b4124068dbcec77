"""The data sets by name."""

from __future__ import annotations

import os

from mlx_peft.core.errors import Command, UserError, suggest
from mlx_peft.core.text import printable
from mlx_peft.data.entry import Entry
from mlx_peft.data.sets import (
    busi,
    cifar,
    digits,
    dtd,
    eurosat,
    fashion_mnist,
    flowers,
    folder,
    food,
    imagenet,
    medmnist,
    parquet,
    pets,
    svhn,
    table,
    tiny_imagenet,
    vtab,
)

REGISTRY: dict[str, Entry] = dict(
    sorted(
        (name, entry)
        for module in (
            cifar,
            digits,
            fashion_mnist,
            folder,
            table,
            parquet,
            tiny_imagenet,
            imagenet,
            eurosat,
            dtd,
            flowers,
            pets,
            svhn,
            food,
            busi,
            medmnist,
            vtab,
        )
        for name, entry in module.ENTRIES.items()
    )
)


def find(name: str) -> Entry:
    """The data set of a name; ``hf:OWNER/NAME`` is any on the hub. Raises UserError, with the nearest, if unknown."""
    if name.startswith(parquet.HUB):
        return parquet.hub_entry(name)
    if name not in REGISTRY:
        near = suggest(name, REGISTRY)
        if os.path.exists(name):
            kind = "folder" if os.path.isdir(name) else "csv"
            near = f"; but a file or folder here has that name: write data.name: {kind}, data.root: {printable(name)}"
        raise UserError(f"unknown data set {name!r}{near}", command=Command("see", ("ls", "datasets")))
    return REGISTRY[name]

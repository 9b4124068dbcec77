"""The data sets by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from mlx_peft.config import schema
from mlx_peft.config.errors import UserError, suggest
from mlx_peft.data import cifar, digits, fashion_mnist, folder
from mlx_peft.data.dataset import Dataset


@dataclass(frozen=True)
class Entry:
    """A data set that can be opened, and a line about it."""

    open: Callable[[schema.Data], Dataset]
    description: str


REGISTRY: dict[str, Entry] = {
    "cifar10": Entry(cifar.open_cifar10, "60,000 photographs of 32 px in 10 classes, 10,000 of them for the test"),
    "cifar100": Entry(cifar.open_cifar100, "60,000 photographs of 32 px in 100 classes, 10,000 of them for the test"),
    "digits": Entry(digits.open_digits, "1,797 handwritten digits of 8 px, part of scikit-learn: nothing to download"),
    "fashion_mnist": Entry(
        fashion_mnist.open_fashion_mnist, "70,000 grey articles of clothing of 28 px in 10 classes, 10,000 for the test"
    ),
    "folder": Entry(folder.open_folder, "images of any size: a folder for each class, with or without train/val/test"),
}


def open_dataset(config: schema.Data) -> Dataset:
    """The data set that a configuration names. Raises UserError where it is unknown, missing or damaged."""
    if config.name not in REGISTRY:
        raise UserError(
            f"data.name: unknown data set {config.name!r}{suggest(config.name, REGISTRY)}; known: {', '.join(REGISTRY)}"
        )
    return REGISTRY[config.name].open(config)

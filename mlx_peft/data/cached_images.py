"""A data set whose image files are each decoded once: read through a cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from mlx_peft.config import schema
from mlx_peft.core.errors import UserError
from mlx_peft.core.own import own_folder
from mlx_peft.data.cache import Cache
from mlx_peft.data.dataset import Dataset, FileImages, Split


@dataclass(frozen=True)
class CachedImages:
    """Image files, each decoded once."""

    images: FileImages
    cache: Cache

    @property
    def identifiers(self) -> Sequence[str]:
        return self.images.identifiers

    @property
    def stored_size(self) -> None:
        return None

    def __len__(self) -> int:
        return len(self.images)

    def take(self, rows: np.ndarray) -> CachedImages:
        return replace(self, images=self.images.take(rows))

    def read(self, index: int) -> np.ndarray:
        path = f"{self.images.root}/{self.images.paths[index]}"
        return self.cache.read(path, lambda: self.images.read(index))

    def portable(self) -> CachedImages:
        return self


def cached(dataset: Dataset, config: schema.Data) -> Dataset:
    """The data set with its image files read through the cache that ``data.cache`` asks for.

    Where its images are no files of their own there is nothing to keep, and a note says so: configurations for several
    data sets have one cache. Raises UserError where the cache's folder cannot be used.
    """
    if not config.cache.gigabytes:
        return dataset
    if not any(isinstance(split.images, FileImages) for split in dataset.splits.values()):
        note = f"data.cache: not used, since {dataset.name} has no image files of their own"
        return replace(dataset, notes=(*dataset.notes, note))
    try:
        folder = own_folder("decoded", config.cache.folder)
    except (OSError, RuntimeError) as error:
        where = config.cache.folder or "the user's folder for caches"
        raise UserError(
            f"data.cache.folder: {where} cannot be used ({getattr(error, 'strerror', None) or error})"
        ) from error
    cache = Cache(folder, int(config.cache.gigabytes * 1e9), config.cache.side)

    def through(split: Split | None) -> Split | None:
        if split is None or not isinstance(split.images, FileImages):
            return split
        return replace(split, images=CachedImages(split.images, cache))

    train = through(dataset.train)
    assert train is not None
    return replace(dataset, train=train, val=through(dataset.val), test=through(dataset.test))

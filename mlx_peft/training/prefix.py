"""The features of a frozen prefix: computed once for every image, and trained on in every epoch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cache
from itertools import islice
from typing import Any

import numpy as np

from mlx_peft.adaptation.prefix import Prefix
from mlx_peft.config.schema import Experiment
from mlx_peft.core import memory
from mlx_peft.core.border import Tensors
from mlx_peft.core.memory import gib
from mlx_peft.core.text import counted
from mlx_peft.core.world import shared
from mlx_peft.data import Batch, Dataset, Split, eval_features, steps_per_epoch, train_features
from mlx_peft.protocols.model import Model
from mlx_peft.training.feed import Feed
from mlx_peft.training.progress import Progress


@dataclass(frozen=True)
class Cache:
    """What a run keeps in memory: the features of ``images`` images."""

    prefix: Prefix
    images: int

    @property
    def bytes(self) -> int:
        return self.images * math.prod(self.prefix.shape) * np.dtype(np.float32).itemsize

    def facts(self) -> dict[str, Any]:
        """For ``result.json``."""
        return {"before": self.prefix.before, "images": self.images, "bytes": self.bytes}


def planned(model: Model, experiment: Experiment, dataset: Dataset, progress: Progress) -> Cache | None:
    """What the run will keep; None where nothing is frozen, images change, or there is more than memory for it."""
    prefix, limit = model.prefix, experiment.train.cache_features
    if prefix is None or experiment.data.augment.changes_pixels or not limit:
        return None
    cached = Cache(prefix, dataset.train.size + (dataset.val.size if dataset.val else 0))
    before, gigabytes = prefix.before, f"{cached.bytes / 1e9:.2g} GB"
    there = memory.available()
    if cached.bytes > min(limit * 1e9, there):
        bound = f"train.cache_features ({limit:g} GB)" if cached.bytes > limit * 1e9 else f"there is ({gib(there)})"
        progress.note(
            f"nothing before {before} is trained, but the features of {counted(cached.images, 'image')} there would "
            f"take {gigabytes}, more than {bound}: they are computed in every epoch"
        )
        return None
    progress.note(f"nothing before {before} is trained: the features there are computed once and kept ({gigabytes})")
    return cached


def cached_feed(
    feed: Feed,
    model: Model,
    experiment: Experiment,
    dataset: Dataset,
    read: Callable[[Split], Iterable[Batch]],
    check: Callable[[], None],
) -> Feed:
    """The batches of ``feed``, in the same order, with features in place of images.

    They are computed where they are first asked for, so that the time counts as the training or the evaluation that
    needs them, and in the split's own order, so that a run that was resumed has the same to the last bit. ``read``
    gives a split's images in that order, of several processes each every size-th batch; ``check`` is called before
    each round of them.
    """
    assert model.prefix is not None
    shape = model.prefix.shape
    train, val = dataset.train, dataset.val

    @cache
    def features(split: Split) -> tuple[np.ndarray, np.ndarray]:
        """Of each image, and of which there are some: an image that cannot be read has none."""
        kept, there = np.empty((split.size, *shape), np.float32), np.zeros(split.size, bool)
        count = steps_per_epoch(split, experiment.data.batch_size)
        for found in shared(feed.world, read(split), count, computed, check):
            kept[found["rows"]], there[found["rows"]] = found["features"], True
        return kept, there

    def computed(batch: Batch) -> Tensors:
        return {"rows": batch.rows, "features": model.features(batch.images)[: batch.count]}

    def train_batches(epoch: int, start: int) -> Iterable[Batch]:
        return train_features(
            train,
            *features(train),
            experiment.data,
            seed=experiment.seed,
            epoch=epoch,
            start=start,
            num_classes=len(dataset.classes),
            smoothing=experiment.train.label_smoothing,
            parts=experiment.train.accumulate * feed.world.size,
        )

    def val_batches(split: Split) -> Iterable[Batch]:
        batches = eval_features(split, *features(split), experiment.data)
        return islice(batches, feed.world.rank, None, feed.world.size)

    return replace(feed, train=train_batches, val=None if val is None else lambda: val_batches(val))

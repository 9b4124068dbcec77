"""Batches of features in place of pixels: what a frozen part of a model made of each image, once."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from mlx_peft.config import schema
from mlx_peft.data.batch import Batch
from mlx_peft.data.dataset import Split
from mlx_peft.data.mix import Targets, as_evaluated
from mlx_peft.data.order import epoch_order


def train_features(
    split: Split,
    features: np.ndarray,
    there: np.ndarray,
    config: schema.Data,
    *,
    seed: int,
    epoch: int,
    start: int = 0,
    num_classes: int | None = None,
    smoothing: float = 0.0,
    parts: int = 1,
) -> Iterator[Batch]:
    """What ``train_batches`` gives where nothing is augmented, with features in place of pixels.

    features: float32 ``(size, ...)``, in the split's own order; there: bool ``(size,)``, of which images.
    """
    order = epoch_order(split.labels, config, seed, epoch)
    targets = Targets(split.task, split.labels, config, num_classes, smoothing, parts)
    return _feature_batches(features, there, order, targets, start)


def eval_features(split: Split, features: np.ndarray, there: np.ndarray, config: schema.Data) -> Iterator[Batch]:
    """What ``eval_batches`` gives, with features in place of pixels."""
    targets = Targets(split.task, split.labels, as_evaluated(config), None)
    return _feature_batches(features, there, np.arange(split.size), targets)


def _feature_batches(
    features: np.ndarray, there: np.ndarray, order: np.ndarray, targets: Targets, start: int = 0
) -> Iterator[Batch]:
    size = targets.batch_size
    for first in range(start * size, len(order), size):
        indices = order[first : first + size]
        indices = indices[there[indices]]
        rows = np.zeros((size, *features.shape[1:]), np.float32)
        rows[: len(indices)] = features[indices]
        yield Batch(rows, targets.batch(indices), indices, targets.weight(indices))

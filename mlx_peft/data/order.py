"""Which images an epoch is made of, and in which order: a pure function of labels, seed and epoch."""

from __future__ import annotations

import numpy as np

from mlx_peft.config import schema
from mlx_peft.data.augment import shuffle

_SAMPLING = 2
POWERS = {"instance": 1.0, "square_root": 0.5, "class": 0.0}
"""Kang et al. 2020, "Decoupling representation and classifier", eq. 1: a class of n images has a share of n^q."""


def epoch_order(labels: np.ndarray, config: schema.Data, seed: int, epoch: int) -> np.ndarray:
    """The images of an epoch, int64 ``(size,)``: as many as the split has, whatever the sampling.

    ``data.sampling``: every image once, or each class its share of the epoch (see POWERS), an image of it never again
    before all others of its class had their turn. ``data.augment.repeats``: r copies of an image one after another, of
    so many images as fit (Hoffer et al. 2020). timm's sampler for one process has the same order, and ends it at the
    last whole 256 images.
    """
    if config.sampling != "instance":
        return _sampled(labels, POWERS[config.sampling], seed, epoch)
    order = shuffle(len(labels), seed, epoch)
    copies = config.augment.repeats
    return np.repeat(order[: -(-len(labels) // copies)], copies)[: len(labels)]


def occurrences(order: np.ndarray) -> np.ndarray:
    """How often each entry came before in the order: the copies of an image are numbered from 0."""
    ranked = np.argsort(order, kind="stable")
    first = np.searchsorted(order[ranked], order[ranked])
    numbers = np.empty_like(order)
    numbers[ranked] = np.arange(len(order)) - first
    return numbers


def _sampled(labels: np.ndarray, power: float, seed: int, epoch: int) -> np.ndarray:
    rng = np.random.default_rng([seed, epoch, 0, _SAMPLING])
    present, counts = np.unique(labels, return_counts=True)
    shares = counts.astype(np.float64) ** power
    wanted = _rounded(shares / shares.sum() * len(labels), len(labels))
    drawn = []
    classes = rows_of_each(labels)
    for label, count in zip(present.tolist(), wanted, strict=True):
        rows = classes[label]
        rounds, rest = divmod(int(count), len(rows))
        drawn += [np.tile(rows, rounds), rng.permutation(rows)[:rest]]
    order: np.ndarray = rng.permutation(np.concatenate(drawn))
    return order


def rows_of_each(labels: np.ndarray) -> list[np.ndarray]:
    """The rows of each label from 0 to the largest, ascending; for the cost of one sort, however many there are."""
    counts = np.bincount(labels)
    return np.split(np.argsort(labels, kind="stable"), np.cumsum(counts)[:-1])


def _rounded(shares: np.ndarray, total: int) -> np.ndarray:
    """Whole numbers that add up to the total: rounded down, then one more for those that lost most."""
    whole: np.ndarray = np.floor(shares).astype(np.int64)
    whole[np.argsort(whole - shares, kind="stable")[: total - whole.sum()]] += 1
    return whole

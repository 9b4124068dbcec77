"""The targets of a batch, and Mixup and CutMix over its rows: timm's, one draw for a batch."""

from __future__ import annotations

import math

import numpy as np

from mlx_peft.config import schema
from mlx_peft.tasks.task import Task

_MIX = 3


def rows(images: int, batch_size: int, parts: int = 1) -> int:
    """The rows of every batch of a split: `batch_size`, or as many as the split has images where those are fewer.

    A multiple of `parts`, of which `batch_size` is one: rows that only fill a batch up are computed like the others.
    """
    return min(batch_size, -(-images // parts) * parts)


def as_evaluated(config: schema.Data) -> schema.Data:
    """As images are evaluated: with their own labels, all counting alike."""
    return config.model_copy(update={"augment": schema.Augment(), "class_weights": "none"})


class Targets:
    """What the labels of a split become in a batch, as their task has it.

    With the divisor ``weight`` the loss of targets that come smoothed is the mean over what the images count.
    """

    def __init__(
        self,
        task: Task,
        labels: np.ndarray,
        config: schema.Data,
        num_classes: int | None,
        smoothing: float = 0.0,
        parts: int = 1,
    ) -> None:
        """Raises ValueError where the task needs the number of classes and nobody says it."""
        self.task, self.labels, self.smoothing = task, labels, smoothing
        self.batch_size = rows(len(labels), config.batch_size, parts)
        self.weights = task.weights(labels, config, num_classes)

    def batch(self, indices: np.ndarray) -> np.ndarray:
        """The targets of these images, a batch's worth of rows."""
        return self.task.targets(self.labels[indices], self.batch_size, self.weights, self.smoothing)

    def weight(self, indices: np.ndarray) -> float | None:
        """What a batch of these images counts, by their labels; None where its targets add up to that."""
        if self.weights is None or not self.smoothing:
            return None
        counted = self.task.counted(self.labels[indices], self.weights)
        total: float = counted.astype(np.float64).sum().item()
        return total or 1.0


def mix(
    images: np.ndarray, targets: np.ndarray, count: int, config: schema.Augment, seed: int, epoch: int, step: int
) -> None:
    """Mixes each of the first `count` rows with its counterpart from the end, in place, as (seed, epoch, step) draw.

    Mixup (Zhang et al. 2018): x = l x_a + (1 - l) x_b in whole levels, and so the targets, with l ~ Beta(a, a).
    CutMix (Yun et al. 2019): a box of x_b in x_a, l the share of x_a that is left.

    images: uint8 ``(batch, height, width, 3)``; targets: float32 ``(batch, ...)``.
    """
    rng = np.random.default_rng([seed, epoch, step, _MIX])
    if rng.random() >= config.mix_probability:
        return
    share = config.cutmix_share if config.mixup and config.cutmix else float(config.cutmix > 0)
    rows, soft = images[:count], targets[:count]
    if rng.random() < share:
        height, width = images.shape[1:3]
        top, bottom, left, right = cut_box(rng, (height, width), rng.beta(config.cutmix, config.cutmix))
        kept = 1 - (bottom - top) * (right - left) / (height * width)
        rows[:, top:bottom, left:right] = rows[::-1, top:bottom, left:right].copy()
    else:
        kept = rng.beta(config.mixup, config.mixup)
        _blend(rows, kept)
    soft[:] = kept * soft + (1 - kept) * soft[::-1]


def cut_box(rng: np.random.Generator, size: tuple[int, int], kept: float) -> tuple[int, int, int, int]:
    """Top, bottom, left and right of a box of the image's shape that leaves about `kept` of its area.

    Its centre is anywhere in the image; what reaches over the border is cut off.
    """
    edges = []
    for side in size:
        length, centre = int(side * math.sqrt(1 - kept)), int(rng.integers(side))
        edges += [max(0, centre - length // 2), min(side, centre + (length + 1) // 2)]
    return edges[0], edges[1], edges[2], edges[3]


def _blend(rows: np.ndarray, kept: float) -> None:
    """Pairs of rows from both ends at once: few temporary arrays, and the middle row is its own counterpart."""
    for a, b in zip(range(len(rows) // 2), range(len(rows) - 1, 0, -1), strict=False):
        x, y = rows[a].astype(np.float32), rows[b].astype(np.float32)
        rows[a] = np.rint(np.float32(kept) * x + np.float32(1 - kept) * y)
        rows[b] = np.rint(np.float32(kept) * y + np.float32(1 - kept) * x)

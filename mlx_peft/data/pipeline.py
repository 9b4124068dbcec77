"""Splits to batches of uint8 images: read, augmented and cut to size by threads, a few batches ahead."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np

from mlx_peft.config import schema
from mlx_peft.core.world import ALONE, World, rows_of
from mlx_peft.data.ahead import Plan, left_alone
from mlx_peft.data.batch import Batch
from mlx_peft.data.dataset import Split
from mlx_peft.data.mix import Targets, as_evaluated, mix
from mlx_peft.data.order import epoch_order
from mlx_peft.data.rows import Augmented, Evaluated
from mlx_peft.vit.architecture import Preprocessing


def steps_per_epoch(split: Split, batch_size: int) -> int:
    """Batches of an epoch, the last of which may be partly filled."""
    return -(-split.size // batch_size)


def train_batches(
    split: Split,
    config: schema.Data,
    preprocessing: Preprocessing,
    image_size: int,
    *,
    seed: int,
    epoch: int,
    start: int = 0,
    num_classes: int | None = None,
    smoothing: float = 0.0,
    parts: int = 1,
    world: World = ALONE,
) -> Iterator[Batch]:
    """The batches `start`, `start` + 1, ... of an epoch, sampled, augmented and mixed.

    A pure function of its arguments, the number of threads apart, which changes nothing. Arrays cross at their stored
    size unless they are cropped at random; everything else at `image_size`. `num_classes` and `smoothing` are
    for soft targets; a batch is computed in `parts`. Of `world` a process reads the rows that it computes, and those
    that are mixed with them; the others are zero. Raises UserError at an unreadable image, unless the split has it left
    out.
    """
    wanted = config.augment

    def mixed(batch: Batch, step: int) -> None:
        mix(batch.images, batch.targets, batch.count, wanted, seed, epoch, step)

    order = epoch_order(split.labels, config, seed, epoch)
    targets = Targets(split.task, split.labels, config, num_classes, smoothing, parts * world.size)
    own = rows_of(world, targets.batch_size, parts)
    plan = Plan(
        split,
        order,
        targets,
        Augmented(wanted, preprocessing, image_size, seed, epoch),
        config,
        partial(_needed, own, split.unread is not None, wanted.mixes),
        mixed if wanted.mixes else left_alone,
    )
    return plan.batches(range(start, -(-len(order) // targets.batch_size)))


def _needed(own: Sequence[slice], leaves_out: bool, mixes: bool, count: int) -> np.ndarray:
    """Of the first ``count`` rows of a batch those that a process reads: its own, and those that are mixed with them.

    All where unreadable images are left out, each of which moves those behind it.
    """
    read = np.full(count, leaves_out)
    for run in own:
        read[run] = True
    return read | read[::-1] if mixes else read


def eval_batches(
    split: Split, config: schema.Data, preprocessing: Preprocessing, image_size: int, world: World = ALONE
) -> Iterator[Batch]:
    """The batches of a split in its own order: arrays at their stored size, files by the evaluation recipe.

    Of `world` a process has every size-th batch.
    """
    targets = Targets(split.task, split.labels, as_evaluated(config), None)
    plan = Plan(split, np.arange(split.size), targets, Evaluated(preprocessing, image_size), config)
    return plan.batches(range(steps_per_epoch(split, targets.batch_size))[world.rank :: world.size])

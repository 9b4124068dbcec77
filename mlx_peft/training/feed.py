"""The batches that a run trains and selects on."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from convert.base import Base
from mlx_peft.config.schema import Experiment
from mlx_peft.core.world import ALONE, World
from mlx_peft.data import Batch, Dataset, eval_batches, steps_per_epoch, train_batches
from mlx_peft.data.unread import Unread
from mlx_peft.tasks.task import Task


@dataclass(frozen=True)
class Feed:
    """The batches that training reads. The test split is not among them."""

    train: Callable[[int, int], Iterable[Batch]]
    """The batches of an epoch (counted from 0) from a given one on: the same ones each time."""
    steps: int
    """The number of batches in an epoch."""
    val: Callable[[], Iterable[Batch]] | None
    """The batches to select on; of several processes each has every size-th."""
    val_steps: int
    task: Task
    num_classes: int
    unread: Unread | None = None
    """The images that could not be read, where these are left out."""
    world: World = ALONE
    """The processes that share them."""


def feed(experiment: Experiment, dataset: Dataset, base: Base, world: World = ALONE) -> Feed:
    """The batches of an experiment, as the fit loop reads them."""
    data, preprocessing, size = experiment.data, base.preprocessing, base.architecture.img_size
    val, num_classes = dataset.val, len(dataset.classes)
    return Feed(
        train=lambda epoch, start: train_batches(
            dataset.train,
            data,
            preprocessing,
            size,
            seed=experiment.seed,
            epoch=epoch,
            start=start,
            num_classes=num_classes,
            smoothing=experiment.train.label_smoothing,
            parts=experiment.train.accumulate,
            world=world,
        ),
        steps=steps_per_epoch(dataset.train, data.batch_size),
        val=None if val is None else lambda: eval_batches(val, data, preprocessing, size, world),
        val_steps=0 if val is None else steps_per_epoch(val, data.batch_size),
        task=dataset.task,
        num_classes=num_classes,
        unread=dataset.unread,
        world=world,
    )

"""A run before its first step: all that can be wrong with an experiment is found here, before a file is touched."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from convert.base import Base, load_base
from mlx_peft.adaptation.room import check_training
from mlx_peft.config.quantization import Quantization
from mlx_peft.config.schema import Experiment
from mlx_peft.core.bounds import MOST_STEPS
from mlx_peft.core.errors import UserError
from mlx_peft.core.text import counted
from mlx_peft.data import Dataset, Split, cached, open_dataset, steps_per_epoch
from mlx_peft.protocols.loading import load_backend
from mlx_peft.protocols.trainer import Trainer
from mlx_peft.training.allocation import allocator
from mlx_peft.training.prefix import Cache, planned
from mlx_peft.training.progress import Progress
from mlx_peft.training.run import environment, run_id
from mlx_peft.training.tracking import check_trackers
from mlx_peft.vit.architecture import Architecture


@dataclass(frozen=True)
class Prepared:
    """An experiment with everything that its first step needs.

    Attributes:
        whole: the data set; ``dataset`` is what training and selection are handed: it has no test split.
        base: without its tensors, which are in the trainer's model.
        cache: the features that are kept in place of images; None where images are trained on.
        splits: size and hash of each.
        run_id: the hash of what decides the outcome.
        environment: the contents of ``env.json``.
    """

    experiment: Experiment
    whole: Dataset
    dataset: Dataset
    base: Base
    trainer: Trainer
    cache: Cache | None
    splits: dict[str, dict[str, Any] | None]
    run_id: str
    environment: dict[str, Any]

    @property
    def identity(self) -> dict[str, Any]:
        """What must be the same where the run goes on."""
        return {"run_id": self.run_id, "base_sha256": self.base.sha256, "splits": self.splits}


def prepare(experiment: Experiment, progress: Progress, *, dataset: Dataset | None = None) -> Prepared:
    """Opens the data, finds the weights, and builds the trainer. Raises UserError for all that is wrong with them.

    ``dataset`` is one that is open already, in the place of the one that the experiment names.
    """
    check_trackers(experiment.track)
    backend = load_backend(experiment.backend)
    whole = dataset or cached(open_dataset(experiment.data, progress.opening), experiment.data)
    dataset = whole.without_test()
    check_data(experiment, dataset)
    base = load_base(
        experiment.model,
        len(dataset.classes),
        experiment.seed,
        experiment.quantize,
        classes=dataset.classes,
        task=dataset.task,
    )
    check_method(experiment, base.architecture, base.quantization)
    check_training(
        experiment,
        base.architecture,
        base.quantization,
        num_classes=len(dataset.classes),
        images=dataset.train.size,
        device=backend.computing(),
    )
    trainer = backend.build_trainer(experiment, len(dataset.classes), base)
    base = base.without_tensors()  # the model has its own
    for note in (*dataset.notes, *base.notes):
        progress.note(note)
    splits = describe_splits(whole)
    return Prepared(
        experiment=experiment,
        whole=whole,
        dataset=dataset,
        base=base,
        trainer=trainer,
        cache=planned(trainer.model, experiment, dataset, progress),
        splits=splits,
        run_id=run_id(experiment, splits),
        environment=environment(backend.version()),
    )


def check_data(experiment: Experiment, dataset: Dataset) -> None:
    """Raises UserError where the experiment asks for what the data set does not have: a split, or as many steps."""
    steps = experiment.train.epochs * steps_per_epoch(dataset.train, experiment.data.batch_size)
    if steps > MOST_STEPS:
        raise UserError(
            f"train.epochs: {counted(experiment.train.epochs, 'epoch')} would be {counted(steps, 'step')}, "
            f"and a run may have {MOST_STEPS:,}"
        )
    allocator(experiment.method, steps)
    if experiment.train.early_stopping and dataset.val is None:
        raise UserError(
            f"train.early_stopping needs a validation split, and {dataset.name} has none: set data.split.val, "
            "or leave train.early_stopping out"
        )


def check_method(experiment: Experiment, architecture: Architecture, quantization: Quantization | None) -> None:
    """Raises UserError where the method does not fit the model, or should not be trained on it."""
    experiment.method.check(architecture)
    experiment.method.check_quantization(architecture, quantization)
    if experiment.qat is not None:
        experiment.method.check_rounding(architecture, experiment.qat, quantization)
    experiment.method.check_new(architecture)


def describe_splits(dataset: Dataset) -> dict[str, dict[str, Any] | None]:
    """Size and hash of each split; None where there is none."""

    def describe(split: Split | None) -> dict[str, Any] | None:
        return None if split is None else {"size": split.size, "sha256": split.sha256}

    return {"train": describe(dataset.train), "val": describe(dataset.val), "test": describe(dataset.test)}

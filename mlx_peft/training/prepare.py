"""A run before its first step: all that can be wrong with an experiment is found here, before a file is touched."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from convert.base import Base, Found, load_base
from mlx_peft.adaptation.room import check_training
from mlx_peft.config.methods import Method
from mlx_peft.config.quantization import Quantization
from mlx_peft.config.schema import Experiment
from mlx_peft.core.bounds import MOST_STEPS
from mlx_peft.core.errors import UserError
from mlx_peft.core.sought import sought_beside
from mlx_peft.core.text import counted
from mlx_peft.core.world import World
from mlx_peft.data import Dataset, Split, cached, open_dataset, steps_per_epoch
from mlx_peft.protocols.loading import backend_of
from mlx_peft.protocols.trainer import Trainer
from mlx_peft.training.allocation import allocator
from mlx_peft.training.bases import opener
from mlx_peft.training.here import Here
from mlx_peft.training.initial import Initial, again, initial
from mlx_peft.training.places import Start, remembered
from mlx_peft.training.prefix import Cache, planned
from mlx_peft.training.progress import Progress
from mlx_peft.training.run import environment, run_id
from mlx_peft.training.start import started
from mlx_peft.training.tracking import check_trackers
from mlx_peft.vit.architecture import Architecture
from mlx_peft.vit.registry import find


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
        here: the experiment with its weights and images where they were found.
        start: the adapter that the run began with.
        method: the experiment's, with the ranks that training images gave it where it asks for that.
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
    here: Experiment
    method: Method
    start: Start | None = None

    @property
    def identity(self) -> dict[str, Any]:
        """What must be the same where the run goes on."""
        return {"run_id": self.run_id, "base_sha256": self.base.sha256, "splits": self.splits}


def prepare(
    experiment: Experiment, progress: Progress, here: Here | None = None, *, dataset: Dataset | None = None
) -> Prepared:
    """Opens the data, finds the weights, and builds the trainer. Raises UserError for all that is wrong with them.

    ``here`` says where they lie; as they are written where None. ``dataset`` is one that is open already, in the place
    of the one that the experiment names.
    """
    here = here or Here(experiment)
    check_trackers(experiment.track)
    backend = backend_of(experiment)
    check_shares(experiment, backend.world())
    root = here.experiment.data.root
    with remembered(here.experiment.data, here.found), sought_beside(root, here.beside):
        whole = dataset or cached(open_dataset(here.experiment.data, progress.opening), experiment.data)
    dataset = whole.without_test()
    check_data(experiment, dataset)
    base = base_here(here, experiment, dataset)
    check_method(experiment, base.architecture, base.quantization)
    check_training(
        experiment,
        base.architecture,
        base.quantization,
        num_classes=len(dataset.classes),
        images=dataset.train.size,
        device=backend.computing(),
        processes=backend.world().size,
    )
    first = begun(here, experiment, base, dataset)
    trainer = backend.build_trainer(experiment.model_copy(update={"method": first.method}), len(dataset.classes), base)
    if first.tensors:
        trainer.model.load_adapter(trainer.model.adapter() | first.tensors)
    start, notes = started(trainer.model, here, base, dataset)
    base = base.without_tensors()  # the model has its own
    for note in (
        *dataset.notes,
        *base.notes,
        *fewer_tokens(experiment, base),
        *first.notes,
        *notes,
        *unrounded(experiment),
    ):
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
        environment=environment(backend.version(), backend.world().size),
        here=here.experiment,
        start=start,
        method=first.method,
    )


def begun(here: Here, experiment: Experiment, base: Base, dataset: Dataset) -> Initial:
    """What the run's adapter starts from; of a run that goes on, its method alone, for its checkpoint has the rest."""
    if here.begun:
        return Initial(again(experiment.method, base.architecture, here.ranks), {})
    return initial(experiment, base, dataset)


def base_here(here: Here, experiment: Experiment, dataset: Dataset) -> Base:
    """The base, from where it lies now. Raises UserError where it is not the one that the run began on."""
    written = experiment.model

    def must_meet(found: Found) -> None:
        if found.sha256 not in (None, here.base_sha256):
            raise UserError(
                f"the run cannot go on with other weights than its own: it began on {str(here.base_sha256)[:12]} "
                f"({written.weights}), and {found.source} has {str(found.sha256)[:12]}",
                arguments=("weights",),
            )

    meets = None if here.base_sha256 is None else must_meet
    with sought_beside(Path(os.path.expanduser(here.experiment.model.weights)), here.beside):
        base = load_base(
            here.experiment.model,
            len(dataset.classes),
            experiment.seed,
            experiment.quantize,
            meets,
            classes=dataset.classes,
            task=dataset.task,
            opener=opener(experiment.backend),
        )
    if here.experiment.model.is_local and not written.is_local:
        return replace(base, source=find(written.name).hub_id or written.weights)
    return base


def check_shares(experiment: Experiment, world: World) -> None:
    """Raises UserError where the processes of a run cannot have equal shares of a batch."""
    check_equal_shares(experiment, world.size)


def check_equal_shares(experiment: Experiment, processes: int) -> None:
    """The same of so many."""
    batch, parts = experiment.data.batch_size, experiment.train.accumulate
    if batch % (parts * processes):
        of_parts = f", each of {parts} parts of it (train.accumulate)" if parts > 1 else ""
        raise UserError(
            f"data.batch_size is {batch}, which {processes} processes cannot share evenly{of_parts}: choose a "
            f"multiple of {parts * processes}"
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
    """Raises UserError where the method or the reducer does not fit the model, or should not be trained on it."""
    experiment.method.check(architecture)
    experiment.method.check_quantization(architecture, quantization)
    if experiment.qat is not None:
        experiment.method.check_rounding(architecture, experiment.qat, quantization)
    experiment.method.check_new(architecture)
    experiment.method.check_tokens(experiment.tokens)
    if experiment.tokens is not None:
        experiment.tokens.check(architecture)


def fewer_tokens(experiment: Experiment, base: Base) -> tuple[str, ...]:
    """A note where the weights are used with fewer tokens, and the experiment with others."""
    if base.tokens in (None, experiment.tokens):
        return ()
    here = "all of them" if experiment.tokens is None else str(experiment.tokens)
    return (f"the weights were made with fewer tokens ({base.tokens}), and tokens here are: {here}",)


def unrounded(experiment: Experiment) -> tuple[str, ...]:
    """A note where TF32 is asked for and nothing here multiplies in it."""
    if experiment.train.precision != "tf32" or backend_of(experiment).computing().rounds:
        return ()
    return ("train.precision: tf32 is float32 here: what computes rounds no products to TF32",)


def describe_splits(dataset: Dataset) -> dict[str, dict[str, Any] | None]:
    """Size and hash of each split; None where there is none."""

    def describe(split: Split | None) -> dict[str, Any] | None:
        return None if split is None else {"size": split.size, "sha256": split.sha256}

    return {"train": describe(dataset.train), "val": describe(dataset.val), "test": describe(dataset.test)}

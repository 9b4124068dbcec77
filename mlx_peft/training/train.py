"""One training run from its configuration to its result."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from convert.adapters import peft
from convert.base import Base, load_base
from convert.stored import model_bytes
from mlx_peft.config.files import dump
from mlx_peft.config.quantization import Quantization
from mlx_peft.config.schema import Experiment
from mlx_peft.core.bounds import MOST_STEPS
from mlx_peft.core.errors import UserError
from mlx_peft.core.sums import write_with_sums
from mlx_peft.data import Dataset, Split, cached, eval_batches, open_dataset, steps_per_epoch, train_batches
from mlx_peft.data.leftout import unread_notes
from mlx_peft.protocols.loading import load_backend
from mlx_peft.protocols.model import Model
from mlx_peft.protocols.trainer import Trainer
from mlx_peft.tasks.task import Task
from mlx_peft.training import unreadable
from mlx_peft.training.allocation import allocator
from mlx_peft.training.checkpoint import Position
from mlx_peft.training.evaluate import answers, examined
from mlx_peft.training.fit import Feed, fit
from mlx_peft.training.prefix import cached_feed, planned
from mlx_peft.training.progress import Progress, Silent
from mlx_peft.training.resume import best
from mlx_peft.training.room import check_training
from mlx_peft.training.run import CHANGEABLE, RunFolder, changed_id, environment, json_bytes, run_id
from mlx_peft.training.stop import Interrupted, Stopped, StopSignal, resumable
from mlx_peft.training.tracking import check_trackers
from mlx_peft.vit.architecture import Architecture, Preprocessing


def train(
    experiment: Experiment, out: Path, *, resume: bool = False, progress: Progress | None = None
) -> dict[str, Any]:
    """Trains, evaluates and saves an experiment in the folder ``out``; returns the contents of its ``result.json``.

    ``resume`` goes on from the folder's checkpoint, starts where there is none yet, and returns the result of a run
    that is finished. The epoch is selected on the validation split, or is the last one where there is none; the test
    split is read once, after that. Raises UserError, before ``out`` is touched, for all that can be known before
    training; Interrupted, with a checkpoint written, on SIGINT, SIGTERM and SIGHUP.
    """
    progress = progress or Silent()
    folder = RunFolder(out)
    folder.check(experiment, resume=resume, changeable=CHANGEABLE)
    if (result := folder.read_result()) is not None:
        for path in (folder.metrics, folder.environment):
            folder.check_sum(path)
        progress.note(f"{out} is finished: nothing is left to do")
        return result
    check_trackers(experiment.track)
    backend = load_backend(experiment.backend)
    whole = cached(open_dataset(experiment.data, progress.opening), experiment.data)
    dataset = whole.without_test()  # all that training and selection are handed
    check_data(experiment, dataset)
    base = load_base(experiment.model, len(dataset.classes), experiment.seed, experiment.quantize)
    base = replace(base, task=dataset.task)
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
    cache = planned(trainer.model, experiment, dataset, progress)

    splits = describe_splits(whole)
    name = run_id(experiment, splits)
    facts = environment(backend.version())
    with folder.locked(), resumable(), StopSignal().listening() as stop:
        folder.check(experiment, resume=resume, changeable=CHANGEABLE)
        texts = {folder.config: dump(experiment).encode(), folder.environment: json_bytes(facts)}
        write_with_sums(folder.path, {path.name: content for path, content in texts.items()})
        if whole.unread is not None:
            unreadable.write_down(whole.unread, folder.path, progress.note)
        batches = feed(experiment, dataset, base)
        if cache is not None:
            size = base.architecture.img_size
            batches = cached_feed(
                batches,
                trainer.model,
                experiment,
                dataset,
                lambda split: stop.watch(eval_batches(split, experiment.data, base.preprocessing, size)),
            )
        position = fit(
            trainer,
            experiment,
            batches,
            folder,
            identity={"run_id": name, "base_sha256": base.sha256, "splits": splits},
            progress=progress,
            stop=stop,
        )
        if dataset.val is not None:
            trainer.model.load_adapter(best(folder, position))
        notes = peft.write_adapter(folder.adapter, describe_adapter(experiment, dataset, base, trainer.model))
        test = None
        if whole.test is not None:
            progress.evaluating("test")
            images = eval_batches(whole.test, experiment.data, base.preprocessing, base.architecture.img_size)
            try:
                test = examined(answers(trainer.model, stop.watch(images)), dataset.task, len(dataset.classes))
            except Stopped:
                raise Interrupted(folder, position.step, position.step) from None
        changes = [asdict(change) for change in position.changes]
        result = {
            "run_id": changed_id(name, changes),
            "status": "finished",
            "backend": experiment.backend,
            "model": base.name,
            "method": experiment.method.name,
            "dataset": dataset.name,
            "seed": experiment.seed,
            "metrics": {"val": position.best or None, "test": test.metrics if test else None},
            "details": {"test": test.details(dataset.classes) if test else None},
            **costs(trainer, dataset.task, position, folder),
            "stored": storage(base, len(dataset.classes), folder),
            "cached_features": cache and cache.facts(),
            "splits": splits,
            "notes": [*whole.notes, *unread_notes(whole.unread)],
            **unreadable.facts(whole.unread),
            **({"changes": changes} if changes else {}),
            "environment": facts,
        }
        write_with_sums(folder.path, {folder.result.name: json_bytes(result)}, there=[folder.metrics.name])
    for note in (*notes, *unread_notes(whole.unread)):
        progress.note(note)
    return result


def check_data(experiment: Experiment, dataset: Dataset) -> None:
    """Raises UserError where the experiment asks for what the data set does not have: a split, or as many steps."""
    steps = experiment.train.epochs * steps_per_epoch(dataset.train, experiment.data.batch_size)
    if steps > MOST_STEPS:
        raise UserError(f"train.epochs: {experiment.train.epochs:,} would be {steps:,} steps, at most {MOST_STEPS:,}")
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


def feed(experiment: Experiment, dataset: Dataset, base: Base) -> Feed:
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
        ),
        steps=steps_per_epoch(dataset.train, data.batch_size),
        val=None if val is None else lambda: eval_batches(val, data, preprocessing, size),
        task=dataset.task,
        num_classes=num_classes,
    )


def describe_splits(dataset: Dataset) -> dict[str, dict[str, Any] | None]:
    """Size and hash of each split; None where there is none."""

    def describe(split: Split | None) -> dict[str, Any] | None:
        return None if split is None else {"size": split.size, "sha256": split.sha256}

    return {"train": describe(dataset.train), "val": describe(dataset.val), "test": describe(dataset.test)}


def describe_adapter(experiment: Experiment, dataset: Dataset, base: Base, model: Model) -> peft.Adapter:
    """What was trained, with all that is needed to use it again."""
    return peft.Adapter(
        method=experiment.method,
        tensors=model.adapter(),
        classes=dataset.classes,
        model=experiment.model,
        architecture=base.architecture,
        preprocessing=as_evaluated(dataset, base.preprocessing),
        base_sha256=base.sha256,
        source=base.source,
        quantize=base.quantization,
        qat=experiment.qat,
        task=dataset.task,
    )


def as_evaluated(dataset: Dataset, preprocessing: Preprocessing) -> Preprocessing:
    """How an image file must be prepared to look as the run's did: of small stored images nothing was cropped away."""
    if dataset.train.images.stored_size is None:
        return preprocessing
    return preprocessing.model_copy(update={"crop_pct": 1.0, "crop_mode": "squash"})


def storage(base: Base, num_classes: int, folder: RunFolder) -> dict[str, int]:
    """Bytes of what the run needs to be used: its base as a file, with a head of its own, and its adapter."""
    model = model_bytes(base.architecture, num_classes, base.quantization)
    adapter = sum(file.stat().st_size for file in folder.adapter.glob("*.safetensors"))
    return {"base_bytes": model, "adapter_bytes": adapter, "total_bytes": model + adapter}


def costs(trainer: Trainer, task: Task, position: Position, folder: RunFolder) -> dict[str, Any]:
    """What was selected, and what it took: parameters, bytes, seconds of training (evaluation is not in them)."""
    parameters = trainer.model.parameters
    return {
        "selected": {
            "epoch": position.best_epoch,
            "by": f"val.{task.leading(position.best)}" if position.best else "last epoch",
        },
        "parameters": {
            "adapter": parameters.adapter,
            "head": parameters.head,
            "trainable": parameters.trainable,
            "total": parameters.total,
            "trainable_percent": 100 * parameters.trainable / parameters.total,
            "stored_bytes": sum(file.stat().st_size for file in folder.adapter.glob("*.safetensors")),
        },
        "time": {
            "train_seconds": position.train_seconds,
            "epoch_seconds": position.train_seconds / position.epoch,
            "images_per_second": position.images_trained / position.train_seconds,
        },
        "memory": {"peak_bytes": max(position.peak_bytes, trainer.peak_memory())},
    }

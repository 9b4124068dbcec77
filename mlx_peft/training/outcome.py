"""What a finished run says of itself: its adapter, and its ``result.json``."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from convert.adapters.peft import Adapter
from convert.base import Base
from convert.stored import model_bytes
from mlx_peft.core.memory import peak_facts, process_peak
from mlx_peft.data import Dataset
from mlx_peft.data.leftout import unread_notes
from mlx_peft.protocols.trainer import Trainer
from mlx_peft.tasks.metrics import Evaluation
from mlx_peft.tasks.task import Task
from mlx_peft.training import unreadable
from mlx_peft.training.bases import adapter_of
from mlx_peft.training.checkpoint import Position
from mlx_peft.training.prepare import Prepared
from mlx_peft.training.run import UNTESTED, RunFolder, changed_id, configuration_id
from mlx_peft.vit.architecture import Preprocessing


def adapter(run: Prepared) -> Adapter:
    """What was trained, with all that is needed to use it again."""
    experiment, base = run.experiment, run.base
    return Adapter(
        method=run.method.model_copy(update={"start": None}),  # its tensors are others by now
        tensors=run.trainer.model.adapter(),
        classes=run.dataset.classes,
        model=experiment.model.model_copy(update={"head": None}),  # it has a head of its own
        architecture=base.architecture,
        preprocessing=as_evaluated(run.dataset, base.preprocessing),
        base_sha256=base.sha256,
        source=base.source,
        quantize=base.quantization,
        qat=experiment.qat,
        tokens=experiment.tokens,
        task=run.dataset.task,
    )


def as_evaluated(dataset: Dataset, preprocessing: Preprocessing) -> Preprocessing:
    """How an image file must be prepared to look as the run's did: of small stored images nothing was cropped away."""
    if dataset.train.images.stored_size is None:
        return preprocessing
    return preprocessing.model_copy(update={"crop_pct": 1.0, "crop_mode": "squash"})


def result(run: Prepared, position: Position, test: Evaluation | None, folder: RunFolder) -> dict[str, Any]:
    """The contents of ``result.json``."""
    experiment, dataset = run.experiment, run.dataset
    changes = [asdict(change) for change in position.changes]
    return {
        "run_id": changed_id(run.run_id, changes),
        "configuration_id": changed_id(configuration_id(experiment, run.splits), changes),
        "status": "finished",
        "backend": experiment.backend,
        "model": run.base.name,
        "method": experiment.method.name,
        **({"tokens": str(experiment.tokens)} if experiment.tokens else {}),
        "dataset": dataset.name,
        "seed": experiment.seed,
        "head": {"initial": "kept" if run.base.head.kept else "new", "reason": run.base.head.reason},
        "metrics": {"val": position.best or None, "test": test.metrics if test else None},
        "details": {"test": test.details(dataset.classes) if test else None},
        **({UNTESTED: True} if test is None and run.whole.test is not None else {}),
        **costs(run.trainer, dataset.task, position, folder),
        "stored": storage(run.base, len(dataset.classes), folder),
        "cached_features": run.cache and run.cache.facts(),
        "splits": run.splits,
        "preprocessing": run.base.preprocessing.model_dump(mode="json"),
        "notes": [*run.whole.notes, *unread_notes(run.whole.unread)],
        **unreadable.facts(run.whole.unread),
        **({"changes": changes} if changes else {}),
        **beginning(run),
        "environment": run.environment,
    }


def beginning(run: Prepared) -> dict[str, Any]:
    """What was trained before and the run began with, if anything was: its optimiser was new all the same."""
    begun: dict[str, Any] = {}
    if run.start is not None:
        begun["adapter"] = {"path": str(run.experiment.method.start), "sha256": run.start.sha256}
    if adapter_of(run.here.model) is not None:
        begun["weights"] = {"path": run.experiment.model.weights, "sha256": run.base.sha256}
    return {"began_with": begun | {"optimizer": "new"}} if begun else {}


def storage(base: Base, num_classes: int, folder: RunFolder) -> dict[str, int]:
    """Bytes of what the run needs to be used: its base as a file, with a head of its own, and its adapter."""
    model = model_bytes(base.architecture, num_classes, base.quantization)
    adapter = sum(file.stat().st_size for file in folder.adapter.glob("*.safetensors"))
    return {"base_bytes": model, "adapter_bytes": adapter, "total_bytes": model + adapter}


def costs(trainer: Trainer, task: Task, position: Position, folder: RunFolder) -> dict[str, Any]:
    """What was selected, and what it took: parameters, bytes, seconds of training (evaluation is not in them)."""
    parameters = trainer.model.parameters
    arrays, process = trainer.peak_memory(), max(position.process_bytes, process_peak())
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
        "memory": peak_facts(None if arrays is None else max(position.peak_bytes, arrays), process),
    }

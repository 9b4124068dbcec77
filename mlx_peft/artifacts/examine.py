"""Finished runs measured again, on the very splits that they had."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from convert.problem import KEY
from mlx_peft.artifacts.load import Loaded, load_model, load_run
from mlx_peft.artifacts.place import find_adapter
from mlx_peft.config.schema import Experiment
from mlx_peft.core.errors import UserError
from mlx_peft.core.text import counted
from mlx_peft.data import Dataset, Split, cached, eval_batches, open_dataset
from mlx_peft.data.leftout import unread_notes
from mlx_peft.data.looking import Watch, unwatched
from mlx_peft.tasks.metrics import Evaluation, Metrics
from mlx_peft.training.evaluate import answers, examined
from mlx_peft.training.run import RunFolder


def evaluate_run(
    path: Path,
    split: Literal["val", "test"] = "test",
    backend: Literal["mlx", "torch"] | None = None,
    *,
    model: Path | None = None,
) -> Metrics:
    """The metrics of a finished run on one of its splits; of a model's folder in its place, where one is named.

    Raises UserError where the data set has no such split, or where it is not the split that the run had: images that
    were trained on might be in it.
    """
    return evaluate_splits(path, [split], backend, model=model)[0][split]


def evaluate_splits(
    path: Path,
    splits: Sequence[Literal["val", "test"]],
    backend: Literal["mlx", "torch"] | None = None,
    *,
    model: Path | None = None,
) -> tuple[dict[str, Metrics], Loaded]:
    """As ``evaluate_run``, on several splits; and what was evaluated."""
    found, loaded = examine_splits(path, splits, backend, model=model)
    return {split: evaluation.metrics for split, evaluation in found.items()}, loaded


def examine_splits(
    path: Path,
    splits: Sequence[Literal["val", "test"]],
    backend: Literal["mlx", "torch"] | None = None,
    *,
    model: Path | None = None,
    watch: Watch = unwatched,
) -> tuple[dict[str, Evaluation], Loaded]:
    """As ``evaluate_splits``, with what the metrics are made of."""
    run, experiment, dataset = run_data(path, watch)
    wanted = {split: own_split(run, dataset, split) for split in splits}
    loaded = load_run(path, backend) if model is None else load_model(model, backend or experiment.backend)
    must_fit(dataset, loaded, str(model or "the run"))
    size = min(experiment.data.batch_size, max((images.size for images in wanted.values()), default=1))
    loaded.check_room(size)
    found: dict[str, Evaluation] = {}
    for split, images in wanted.items():
        batches = eval_batches(images, experiment.data, loaded.preprocessing, loaded.image_size)
        found[split] = examined(answers(loaded.model, batches), loaded.task, len(loaded.classes))
    return found, replace(loaded, notes=(*loaded.notes, *unread_notes(dataset.unread)))


def must_fit(dataset: Dataset, loaded: Loaded, what: str) -> None:
    """Raises UserError where a model was trained on other classes, or on another problem, than a data set's."""
    if dataset.classes != loaded.classes:
        raise UserError(f"the classes of {dataset.name} are not those that {what} was trained on")
    if dataset.task != loaded.task:
        raise UserError(
            f"an image of {dataset.name} {dataset.task.image}, and to {what} an image {loaded.task.image} ({KEY})"
        )


def run_data(path: Path, watch: Watch = unwatched) -> tuple[RunFolder, Experiment, Dataset]:
    """A finished run's configuration, and its data set opened again. Raises UserError where it is no such run."""
    run = RunFolder(path)
    if not run.config.exists():
        raise UserError(f"{path} is not a run (config.yaml is missing): only a run knows its data")
    find_adapter(path, None)
    experiment = run.read_config()
    return run, experiment, cached(open_dataset(experiment.data, watch), experiment.data)


def own_split(run: RunFolder, dataset: Dataset, split: Literal["train", "val", "test"]) -> Split:
    """A split of a run's data set. Raises UserError where there is none, or it is not the one that the run had."""
    found = {"train": dataset.train, "val": dataset.val, "test": dataset.test}[split]
    if found is None:
        raise UserError(f"{dataset.name} has no {split} split in this run; see data.split in {run.config}")
    known = ((run.read_result() or {}).get("splits") or {}).get(split)
    if known is not None and known["sha256"] != found.sha256:
        raise UserError(
            f"the {split} split of {dataset.name} is not the one of the run: {counted(known['size'], 'image')} "
            f"({known['sha256'][:12]}) then, {found.size} ({found.sha256[:12]}) now"
        )
    return found

"""The images that a finished run is measured on: its own, wherever they lie now, or others of the same classes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from convert.problem import KEY
from mlx_peft.artifacts.load import Loaded
from mlx_peft.artifacts.place import find_adapter
from mlx_peft.config import files
from mlx_peft.config.schema import Data, Experiment
from mlx_peft.config.schema import Split as Shares
from mlx_peft.config.yaml_io import Document
from mlx_peft.core.errors import Command, UserError
from mlx_peft.core.text import counted
from mlx_peft.data import Dataset, Split, cached, find, open_dataset
from mlx_peft.data.looking import Watch, unwatched
from mlx_peft.data.names import spelled
from mlx_peft.tasks.task import Task
from mlx_peft.training.places import data_here, read_found, remembered
from mlx_peft.training.run import FREE, RunFolder, differences, flatten
from mlx_peft.training.whereabouts import adapter_in

SplitName = Literal["train", "val", "test"]
KEPT = ("batch_size", "threads", "workers", "unreadable", "cache")
"""These settings of a run's data hold for any other data set too."""


@dataclass(frozen=True)
class Images:
    """A data set opened for a run.

    Attributes:
        data: what it was opened by.
        own: whether its splits are those that the run had; otherwise images that were trained on may be among them.
    """

    run: RunFolder
    data: Data
    dataset: Dataset
    own: bool

    def split(self, name: SplitName | None = None) -> Split:
        """A split: of the run's own images the very one that it had.

        Args:
            name: None: the test split, or of others that have none, all there are.

        Raises:
            UserError: where there is none, or it is not the run's.
        """
        if self.own:
            return own_split(self.run, self.dataset, name or "test")
        splits = self.dataset.splits
        if name is None:
            return splits["test"] if "test" in splits else replace(splits["train"], name="all")
        if name not in splits:
            raise UserError(f"{self.dataset.name} in {self.data.root} has no {name} split; it has {', '.join(splits)}")
        return splits[name]

    @property
    def notes(self) -> tuple[str, ...]:
        """That they are others, for a person."""
        if self.own:
            return ()
        return (
            f"{self.dataset.name} in {self.data.root} is not the run's own split of its data: whether images are among "
            "these that it was trained on is not known",
        )


def run_images(path: Path, overrides: Iterable[str] = (), watch: Watch = unwatched) -> tuple[Images, Experiment]:
    """A finished run's images opened again, and its experiment.

    ``overrides`` say where they are now, or name others: ``data.root=photos``. Of another set, or another folder that
    holds other images, no split is held out that it does not have itself. Nothing is fetched, and decoded images are
    kept in the user's own folder for caches, unless ``overrides`` say otherwise.

    Raises UserError where there is no such run, or its images are not found.
    """
    run = RunFolder(path)
    if not run.config.exists():
        raise _no_run(path)
    find_adapter(path, None)
    experiment, given = _harmless(run.read_config()), list(overrides)
    if not given:
        found = read_found(run)
        data = data_here(experiment.data, run, found)
        with remembered(data, found):
            return Images(run, data, opened(data, watch), own=True), experiment
    data = asked(experiment, given)
    moved = differences(flatten(_plain(experiment.data)), flatten(_plain(data))).keys() <= {"root", *_free()}
    if moved and (dataset := _own(run, data, watch)) is not None:
        return Images(run, data, dataset, own=True), experiment
    shares = any(one.startswith("data.split") for one in given)
    data = data if shares else data.model_copy(update={"split": _nothing_held_out(data)})
    return Images(run, data, opened(data, watch), own=False), experiment


def _no_run(path: Path) -> UserError:
    """What to name in the place of a folder that is none: of an adapter, its run, or that of others beside a model."""
    place = adapter_in(path)
    if place is None:
        return UserError(f"{path} is not a run ({RunFolder(path).config.name} is missing): only a run knows its data")
    around = RunFolder(place.resolve().parent)
    if around.config.exists():
        return UserError(f"{path} is the adapter of a run, and only the run knows its data: name {around.path}")
    return UserError(
        f"{path} is an adapter without its run, and only a run knows its data: make a model of it, and evaluate that "
        "on the images of another run of the same classes",
        arguments=("model",),
        command=Command("to make one", ("merge", str(path), "FOLDER")),
    )


def _harmless(experiment: Experiment) -> Experiment:
    """A run's experiment without what it says of fetching and of where is written: it may be somebody else's."""
    data = experiment.data
    cache = data.cache.model_copy(update={"folder": None})
    return experiment.model_copy(update={"data": data.model_copy(update={"download": False, "cache": cache})})


def opened(data: Data, watch: Watch) -> Dataset:
    """A data set, with what the cache has of it."""
    return cached(open_dataset(data, watch), data)


def asked(experiment: Experiment, overrides: Sequence[str]) -> Data:
    """A run's ``data`` with what a user changes in it. Of another set the run's own options say nothing.

    Raises UserError, with all that is wrong, and where anything but ``data`` is to be changed.
    """
    above = files.override(overrides)
    if other := [key for key in flatten(above.values) if not key.startswith("data.")]:
        raise UserError(f"{', '.join(other)}: a run is measured as it is; only which images it is shown may be changed")
    values = experiment.model_dump(mode="json")
    name = above.values.get("data", {}).get("name")
    if name not in (None, experiment.data.name):
        values["data"] = {key: values["data"][key] for key in KEPT if key in values["data"]}
    return files.resolve(files.merged(Document(values, {}), above), {"data.name": find}).data


def own_split(run: RunFolder, dataset: Dataset, split: SplitName) -> Split:
    """A split of a run's data set. Raises UserError where there is none, or it is not the one that the run had."""
    found = dataset.splits.get(split)
    if found is None:
        raise UserError(f"{dataset.name} has no {split} split in this run; see data.split in {run.config}")
    known = _known(run).get(split)
    if known is not None and known["sha256"] != found.sha256:
        raise UserError(
            f"the {split} split of {dataset.name} is not the one of the run: {counted(known['size'], 'image')} "
            f"({known['sha256'][:12]}) then, {found.size} ({found.sha256[:12]}) now"
        )
    return found


def fitted(split: Split, images: Images, loaded: Loaded, what: str) -> tuple[Split, tuple[str, ...]]:
    """A split with the labels that a model gives to its classes, which are compared by their names; and notes.

    The run's own images have the run's own labels: there the classes are to be the same, in the same order.

    Raises UserError where the model does not know a class, or was trained on another problem.
    """
    return labelled(split, images.dataset, loaded.classes, loaded.task, what, ordered=images.own)


def labelled(
    split: Split, dataset: Dataset, classes: Sequence[str], task: Task, what: str, *, ordered: bool = False
) -> tuple[Split, tuple[str, ...]]:
    """A split of a data set with the labels of a model's classes, by their names; and notes.

    Args:
        classes: the model's, in the order of its head's rows.
        task: what the head answers.
        what: the model is, for an error.
        ordered: whether the data set's classes are to be the same, in the same order.

    Raises:
        UserError: the model does not know a class, or was trained on another problem.
    """
    if dataset.task != task:
        raise UserError(f"an image of {dataset.name} {dataset.task.image}, and to {what} an image {task.image} ({KEY})")
    theirs, ours = [*map(spelled, dataset.classes)], [*map(spelled, classes)]
    if theirs == ours:
        return split, ()
    places = {name: row for row, name in enumerate(ours)}
    unknown = [name for name in theirs if name not in places]
    if unknown or ordered or len(places) < len(ours) or len({*theirs}) < len(theirs):
        few = f", such as {unknown[0]!r}" if unknown else ""
        raise UserError(f"the classes of {dataset.name} are not those that {what} was trained on{few}")
    rows = np.array([places[name] for name in theirs])
    labels = split.task.relabelled(split.labels, rows, len(ours))
    absent = [name for name in ours if name not in theirs]
    note = f"{dataset.name} has no images of {counted(len(absent), 'class')}, such as {absent[0]!r}" if absent else ""
    return replace(split, labels=labels), (note,) if note else ()


def _own(run: RunFolder, data: Data, watch: Watch) -> Dataset | None:
    """The data set where it is the run's, moved; None where others are there."""
    known = _known(run).get("train")
    try:
        dataset = opened(data, watch)
    except UserError:
        if known is None:
            raise
        return None
    return dataset if known is None or known["sha256"] == dataset.train.sha256 else None


def _known(run: RunFolder) -> dict[str, Any]:
    """Size and digest of the run's splits, as its result has them."""
    return (run.read_result() or {}).get("splits") or {}


def _nothing_held_out(data: Data) -> Shares:
    """No shares, but where the protocol of the set says itself what is held out."""
    fixed = find(data.name).variant(data.name, data.variant).shares is not None
    return Shares() if fixed else Shares(val=0.0, test=0.0, group_by="none")


def _plain(data: Data) -> dict[str, Any]:
    return data.model_dump(mode="json")


def _free() -> list[str]:
    """What of ``data`` decides nothing."""
    return [key.removeprefix("data.") for key in FREE if key.startswith("data.")]

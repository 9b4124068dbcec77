"""The images and labels that a notebook has, as a data set."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from mlx_peft.artifacts.images import labelled
from mlx_peft.config.schema import Data
from mlx_peft.core.errors import UserError
from mlx_peft.core.paths import given_path
from mlx_peft.core.problems import validated
from mlx_peft.data import ArrayImages, Dataset, Split, cached, given, open_dataset
from mlx_peft.data.splits import hold_out
from mlx_peft.library.framework import Network
from mlx_peft.training.outcome import as_evaluated
from mlx_peft.vit.architecture import Preprocessing

IN_MEMORY = "images in memory"


def section(data: Any, batch_size: int | None = None, val: float | None = None) -> Data:
    """What a notebook names its images by, as the ``data`` of an experiment, with what it says besides.

    Args:
        data: ``Data``, or its keys and values; a folder of images, a folder for each class; the name of a data set; or
            two arrays, images and labels.

    Raises:
        UserError: it is none of these.
    """
    named = _named(data)
    sizes = {} if batch_size is None else {"batch_size": batch_size}
    shares = {} if val is None else {"split": {**named.split.model_dump(), "val": val}}
    return validated(Data, "data", {**{key: getattr(named, key) for key in named.model_fields_set}, **sizes, **shares})


def _named(data: Any) -> Data:
    if isinstance(data, Data):
        return data
    if isinstance(data, Mapping):
        return validated(Data, "data", data)
    if isinstance(data, str | os.PathLike):
        path = given_path(data, "data")
        return Data(name="folder", root=path) if path.is_dir() else validated(Data, "data", {"name": str(data)})
    if isinstance(data, tuple | list) and len(data) == 2:
        return Data(name=IN_MEMORY)
    raise UserError(
        "data should be a folder, the name of a data set, mp.Data(...), or two arrays, (images, labels), not "
        f"{type(data).__name__}"
    )


def dataset(data: Any, config: Data, model: Network) -> Dataset:
    """The images of ``section``, opened and split; its classes are the model's where nothing names them.

    Raises:
        UserError: there are none, or labels are not those of the model's classes.
    """
    if config.name != IN_MEMORY:
        return cached(open_dataset(config), config)
    images, labels = data
    task, rows = model.base.task, model.head.weight.shape[0]
    sources, _ = given.taken(images)
    answers = np.asarray(labels)
    if len(answers) != len(sources):
        raise UserError(f"there are {len(sources)} images and {len(answers)} labels")
    if (fault := task.fault(answers, rows) if sources else "there are no images") is not None:
        raise UserError(fault)
    pixels = given.stacked(sources, model.base.preprocessing, model.architecture.img_size)
    answers = answers.astype(np.int64 if answers.ndim == 1 else np.uint8)
    train = Split("train", ArrayImages.whole(pixels, IN_MEMORY), answers, task=task)
    return hold_out(IN_MEMORY, model.classes or tuple(map(str, range(rows))), train, config.split)


def seen(split: Split, model: Network) -> Split:
    """A split whose images are seen as ``model.predict`` sees them."""
    return replace(split, images=given.Seen(split.images, model.base.preprocessing, model.architecture.img_size))


def as_trained_on(found: Dataset, model: Network) -> Preprocessing:
    """How an image must be prepared to look as a data set's do in training: those in memory are seen by the recipe."""
    preprocessing = model.base.preprocessing
    return preprocessing if found.name == IN_MEMORY else as_evaluated(found, preprocessing)


def labelled_for(model: Network, found: Dataset, split: Split) -> tuple[Split, tuple[str, ...]]:
    """A split of a data set with the labels that a model's classes have, by their names; and notes.

    Raises UserError where the model does not know a class, or answers something else.
    """
    if model.classes:
        return labelled(split, found, model.classes, model.base.task, "the model")
    must_fit(found, model)
    return split, ()


def must_fit(found: Dataset, model: Network) -> None:
    """Raises UserError where a model answers something else than a data set asks."""
    rows = model.head.weight.shape[0]
    if len(found.classes) != rows:
        raise UserError(f"{found.name} has {len(found.classes)} classes, and the model's head has {rows} rows")
    if model.classes and model.classes != found.classes:
        raise UserError(f"the classes of {found.name} are not those of the model, or in another order")
    if found.task != model.base.task:
        raise UserError(
            f"an image of {found.name} {found.task.image}, and to the model an image {model.base.task.image}"
        )

"""What the model is shown in training: images after augmentation, resize and mixing, with what it is told of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
from PIL import Image

from convert.base import load_base
from mlx_peft.config.schema import Experiment
from mlx_peft.data import cached, open_dataset, train_batches
from mlx_peft.data.looking import Watch, unwatched
from mlx_peft.data.recipe import FILTERS
from mlx_peft.training.bases import described


@dataclass(frozen=True, eq=False)
class Shown:
    """One image of a batch, uint8 ``(size, size, 3)``, as it is before it is normalised, and its classes."""

    pixels: np.ndarray
    classes: dict[str, float]
    """The share of each class that it has something of: one, or several where images are mixed or may have several."""
    weight: float
    """How much the image counts in the loss; 1 unless ``data.class_weights`` says otherwise."""


def preview(experiment: Experiment, count: int, epoch: int = 0, watch: Watch = unwatched) -> list[Shown]:
    """The first images that a run of the experiment trains on in an epoch, counted from 0: the very pixels.

    Weights of timm's are not downloaded: what they say of their images is known. Raises UserError as a run would.
    """
    model = experiment.model
    if model.weights == "timm":
        model = model.model_copy(update={"weights": "none", "head": None})
    dataset = cached(open_dataset(experiment.data, watch), experiment.data)
    base = load_base(
        model, len(dataset.classes), experiment.seed, classes=dataset.classes, task=dataset.task, opener=described
    )
    size, interpolation = base.architecture.img_size, FILTERS[base.preprocessing.interpolation]

    def shown() -> Iterator[Shown]:
        for batch in train_batches(
            dataset.train,
            experiment.data,
            base.preprocessing,
            size,
            seed=experiment.seed,
            epoch=epoch,
            num_classes=len(dataset.classes),
        ):
            for pixels, target in zip(batch.images[: batch.count], batch.targets, strict=False):
                if pixels.shape[:2] != (size, size):  # which the model does in its step, to the same pixels
                    pixels = np.asarray(Image.fromarray(pixels).resize((size, size), interpolation))
                shares, weight = dataset.task.shares(target, len(dataset.classes))
                classes = {dataset.classes[n]: float(shares[n]) for n in np.flatnonzero(shares)}
                yield Shown(pixels, dict(sorted(classes.items(), key=lambda item: -item[1])), weight)

    return list(islice(shown(), count))

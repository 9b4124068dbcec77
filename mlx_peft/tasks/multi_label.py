"""An image may have several of the classes, or none of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from mlx_peft.config.data import Data
from mlx_peft.core.errors import UserError
from mlx_peft.core.text import counted
from mlx_peft.tasks import answers, multi_label_metrics
from mlx_peft.tasks.metrics import Answers, Evaluation
from mlx_peft.tasks.task import NONE, Task
from mlx_peft.tasks.weights import class_weights


@dataclass(frozen=True)
class MultiLabel(Task):
    """Labels: whether each class is there, uint8 ``(n, classes)`` of 0 and 1.

    Targets: the absence and the presence of each class, float32 ``(batch, classes, 2)``; the two add up to what this
    answer counts in the loss, in a row that fills up to 0. Weights are those of the two, class by class, and targets
    come smoothed as a single label's shares, of two classes each.
    """

    name = "multi_label_classification"
    image = "may have several classes or none"
    fewest = 1
    figures: ClassVar = {"auroc": "AUROC", "accuracy": "accuracy", "map": "mAP"}
    columns = ("auroc", "accuracy", "map")
    agreement = "same answers"
    activation = "sigmoid"
    reading = "an image may have several classes: the sigmoid of each logit is the probability of its class"
    hub_task = "image-classification"
    hub_metrics: ClassVar = {"auroc": "roc_auc", "loss": "loss"}

    def check_options(self, config: Data) -> None:
        if config.sampling != "instance":
            raise UserError(
                f"data.sampling: {config.sampling} draws images by their class, and an image of {config.name} "
                f"{self.image}: leave it out; data.class_weights makes up for rare ones"
            )

    def fault(self, labels: np.ndarray, classes: int) -> str | None:
        sound = labels.ndim == 2 and labels.shape[1] == classes and labels.max() <= 1
        return None if sound else f"labels are not {classes} times 0 or 1"

    def rows_of(self, labels: np.ndarray, label: int) -> np.ndarray:
        rows: np.ndarray = np.flatnonzero(labels[:, label])
        return rows

    def rows_of_none(self, labels: np.ndarray) -> np.ndarray:
        rows: np.ndarray = np.flatnonzero(~labels.any(axis=1))
        return rows

    def counts(self, labels: np.ndarray, classes: int) -> np.ndarray:
        found: np.ndarray = labels.sum(axis=0, dtype=np.int64)
        return found

    def strata(self, labels: np.ndarray) -> np.ndarray:
        """How many classes an image has."""
        found: np.ndarray = labels.sum(axis=1, dtype=np.int64)
        return found

    def relabelled(self, labels: np.ndarray, rows: np.ndarray, classes: int) -> np.ndarray:
        found = np.zeros((len(labels), classes), labels.dtype)
        found[:, rows] = labels
        return found

    def written(self, label: np.ndarray) -> str:
        """A figure for each class: ``0100``."""
        return (label + ord("0")).astype(np.uint8).tobytes().decode()

    def named(self, label: np.ndarray, classes: Sequence[str]) -> str:
        """``effusion, mass``"""
        return ", ".join(classes[index] for index in np.flatnonzero(label).tolist()) or NONE

    def weights(self, labels: np.ndarray, config: Data, num_classes: int | None) -> np.ndarray:
        """Of the absence and the presence of each class, ``(classes, 2)``."""
        return np.stack([class_weights(column, 2, config.class_weights) for column in labels.T])

    def targets(self, labels: np.ndarray, rows: int, weights: np.ndarray | None, smoothing: float) -> np.ndarray:
        assert weights is not None
        targets = np.zeros((rows, *weights.shape), np.float32)
        images = slice(len(labels))
        targets[images] = np.eye(2, dtype=np.float32)[labels] * weights
        if smoothing:
            targets[images] = (1 - smoothing) * targets[images] + smoothing * (weights / 2)
        return targets

    def counted(self, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """Of each image and class, ``(n, classes, 1)``."""
        return np.take_along_axis(weights[None], labels[..., None], -1)

    def total_weight(self, targets: np.ndarray) -> float:
        """What all answers count: those on an image as many as there are classes."""
        weight: float = targets.astype(np.float64).sum().item()
        return weight or 1.0

    def shares(self, target: np.ndarray, num_classes: int) -> tuple[np.ndarray, float]:
        """How certain it is that each class is there. One that all images have, or none, may count nothing."""
        counted = target.sum(axis=1)
        return target[:, 1] / np.where(counted > 0, counted, 1), float(counted.mean())

    def examined(self, answers: Iterable[Answers], num_classes: int, auroc: bool) -> Evaluation:
        return multi_label_metrics.examined(answers)

    def decided(self, logits: np.ndarray) -> np.ndarray:
        """Whether each class is there, ``(images, classes)``: where its probability is above one half."""
        present: np.ndarray = logits > 0
        return present

    def answer(self, logits: np.ndarray, classes: Sequence[str], top: int) -> list[dict[str, Any]]:
        """The likeliest classes, each with a probability of its own: above one half it is there."""
        return answers.likeliest(logits, self.probabilities(logits), classes, top)

    def outputs(self, rows: int) -> str:
        return f"{counted(rows, 'class')}, of which an image may have several"

    def line(self, entry: Mapping[str, Any]) -> str:
        return answers.line(entry)


MULTI_LABEL = MultiLabel()

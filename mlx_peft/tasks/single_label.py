"""Each image has one of the classes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from mlx_peft.config.data import Data
from mlx_peft.core.text import counted
from mlx_peft.tasks import answers, single_label_metrics
from mlx_peft.tasks.metrics import Answers, Evaluation
from mlx_peft.tasks.task import Task
from mlx_peft.tasks.weights import class_weights

IGNORED = -1
"""The target of a row that fills a batch up: it adds nothing to the loss."""


@dataclass(frozen=True)
class SingleLabel(Task):
    """Labels: the class of each image, int64 ``(n,)``.

    Targets have two forms, told apart by their type. Class numbers: int32 ``(batch,)``, IGNORED in the rows that fill
    up; the loss smooths them. Shares, where images are mixed or classes weigh differently: float32 ``(batch,
    classes)``; a row adds up to what the image counts in the loss, one that fills up to 0. They come smoothed: (1 - e)
    w_y [k = y] + e w_k / classes, w the weights, e the smoothing. With the divisor ``counted`` the loss is then that of
    torch's ``CrossEntropyLoss(weight=w, label_smoothing=e)``.
    """

    name = "single_label_classification"
    image = "has one class"
    fewest = 2
    figures: ClassVar = {"top1": "top-1", "top5": "top-5", "balanced_accuracy": "balanced", "auroc": "AUROC"}
    columns = ("top1", "top5")
    agreement = "same class"
    activation = "softmax"
    hub_task = "image-classification"
    hub_metrics: ClassVar = {"top1": "accuracy", "loss": "loss"}

    def check_options(self, config: Data) -> None:
        """All options are for this task."""

    def fault(self, labels: np.ndarray, classes: int) -> str | None:
        if labels.ndim != 1 or labels.dtype.kind not in "iu":
            return f"labels are {labels.dtype} of the shape {labels.shape}, not one whole number an image"
        low, high = labels.min(), labels.max()
        return f"labels {low} to {high}, not 0 to {classes - 1}" if low < 0 or high >= classes else None

    def rows_of(self, labels: np.ndarray, label: int) -> np.ndarray:
        rows: np.ndarray = np.flatnonzero(labels == label)
        return rows

    def counts(self, labels: np.ndarray, classes: int) -> np.ndarray:
        return np.bincount(labels, minlength=classes)

    def strata(self, labels: np.ndarray) -> np.ndarray:
        """The class."""
        return labels

    def relabelled(self, labels: np.ndarray, rows: np.ndarray, classes: int) -> np.ndarray:
        found: np.ndarray = rows[labels]
        return found

    def written(self, label: np.ndarray) -> str:
        """``3``"""
        return str(label)

    def named(self, label: np.ndarray, classes: Sequence[str]) -> str:
        return classes[int(label)]

    def weights(self, labels: np.ndarray, config: Data, num_classes: int | None) -> np.ndarray | None:
        """Of each class, ``(classes,)``; None where class numbers will do."""
        if not config.soft_targets:
            return None
        if num_classes is None:
            raise ValueError("soft targets need num_classes")
        return class_weights(labels, num_classes, config.class_weights)

    def targets(self, labels: np.ndarray, rows: int, weights: np.ndarray | None, smoothing: float) -> np.ndarray:
        if weights is None:
            numbers = np.full(rows, IGNORED, np.int32)
            numbers[: len(labels)] = labels
            return numbers
        shares = np.zeros((rows, len(weights)), np.float32)
        shares[np.arange(len(labels)), labels] = weights[labels]
        if smoothing:
            images = slice(len(labels))
            shares[images] = (1 - smoothing) * shares[images] + smoothing * (weights / len(weights))
        return shares

    def counted(self, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """Of each image, ``(n,)``."""
        found: np.ndarray = weights[labels]
        return found

    def total_weight(self, targets: np.ndarray) -> float:
        """The images in a batch, or what they count."""
        if np.issubdtype(targets.dtype, np.integer):
            return float(max(1, int(np.count_nonzero(targets != IGNORED))))
        weight: float = targets.astype(np.float64).sum().item()
        return weight or 1.0

    def shares(self, target: np.ndarray, num_classes: int) -> tuple[np.ndarray, float]:
        """Each class's share of the image."""
        soft = np.eye(num_classes)[target] if np.issubdtype(target.dtype, np.integer) else target
        return soft / soft.sum(), float(soft.sum())

    def examined(self, answers: Iterable[Answers], num_classes: int, auroc: bool) -> Evaluation:
        return single_label_metrics.examined(answers, num_classes, auroc)

    def decided(self, logits: np.ndarray) -> np.ndarray:
        """The class of each image, ``(images,)``."""
        chosen: np.ndarray = logits.argmax(axis=1)
        return chosen

    def answer(self, logits: np.ndarray, classes: Sequence[str], top: int) -> list[dict[str, Any]]:
        """The likeliest classes; all probabilities add up to 1."""
        return answers.likeliest(logits, self.probabilities(logits), classes, top)

    def outputs(self, rows: int) -> str:
        return counted(rows, "class")

    def line(self, entry: Mapping[str, Any]) -> str:
        return answers.line(entry)


SINGLE_LABEL = SingleLabel()

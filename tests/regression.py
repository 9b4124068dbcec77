"""A third task as one module: images have a value, not a class. Its loss for both backends stands with it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from mlx_peft.config.schema import Data
from mlx_peft.core.errors import UserError
from mlx_peft.core.text import printable
from mlx_peft.tasks.metrics import Answers, Evaluation
from mlx_peft.tasks.task import Task

CLOSE = 0.25
"""An answer that is no further off is taken to be right."""


@dataclass(frozen=True)
class Regression(Task):
    """Labels: the values of each image, float32 ``(n, values)``.

    Targets: each value and what it counts, float32 ``(batch, values, 2)``; a row that fills up is zero.
    """

    name = "regression"
    image = "has a value"
    fewest = 1
    figures: ClassVar = {"close": "close"}
    columns = ("close",)
    agreement = "same values"
    activation = "identity"
    reading = "an image has a value: a logit is that value"
    entry = ("name", "value")
    hub_task = "image-feature-extraction"
    hub_metrics: ClassVar = {"close": "close", "loss": "mse"}

    def check_options(self, config: Data) -> None:
        if config.sampling != "instance" or config.class_weights != "none":
            raise UserError(f"data.sampling and data.class_weights: an image of {config.name} {self.image}, no class")

    def fault(self, labels: np.ndarray, classes: int) -> str | None:
        sound = labels.shape[1:] == (classes,) and np.isfinite(labels).all()
        return None if sound else f"labels are not {classes} finite values each"

    def rows_of(self, labels: np.ndarray, label: int) -> np.ndarray:
        return np.arange(len(labels))

    def counts(self, labels: np.ndarray, classes: int) -> np.ndarray:
        return np.full(classes, len(labels))

    def strata(self, labels: np.ndarray) -> np.ndarray:
        return np.zeros(len(labels), np.int64)

    def relabelled(self, labels: np.ndarray, rows: np.ndarray, classes: int) -> np.ndarray:
        found = np.zeros((len(labels), classes), labels.dtype)
        found[:, rows] = labels
        return found

    def written(self, label: np.ndarray) -> str:
        return " ".join(f"{value:.9g}" for value in label.tolist())

    def named(self, label: np.ndarray, classes: Sequence[str]) -> str:
        return ", ".join(f"{name} {value:.3g}" for name, value in zip(classes, label.tolist(), strict=True))

    def weights(self, labels: np.ndarray, config: Data, num_classes: int | None) -> np.ndarray | None:
        return None

    def targets(self, labels: np.ndarray, rows: int, weights: np.ndarray | None, smoothing: float) -> np.ndarray:
        targets = np.zeros((rows, labels.shape[1], 2), np.float32)
        targets[: len(labels)] = np.stack([labels, np.ones_like(labels)], -1)
        return targets

    def counted(self, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
        return np.ones_like(labels)

    def total_weight(self, targets: np.ndarray) -> float:
        return float(targets[..., 1].sum(dtype=np.float64)) or 1.0

    def shares(self, target: np.ndarray, num_classes: int) -> tuple[np.ndarray, float]:
        return target[:, 0], float(target[:, 1].mean())

    def examined(self, answers: Iterable[Answers], num_classes: int, auroc: bool) -> Evaluation:
        off = np.concatenate([logits - targets[..., 0] for logits, targets in answers])
        metrics = {"loss": float(np.square(off).mean()), "count": len(off), "close": float((abs(off) <= CLOSE).mean())}
        per_class = {"support": np.full(num_classes, len(off)), "error": abs(off).mean(axis=0)}
        return Evaluation(metrics, None, per_class, {})

    def decided(self, logits: np.ndarray) -> np.ndarray:
        return np.round(logits / CLOSE)

    def answer(self, logits: np.ndarray, classes: Sequence[str], top: int) -> list[dict[str, Any]]:
        return [{"name": name, "value": value} for name, value in zip(classes, logits.tolist(), strict=True)][:top]

    def outputs(self, rows: int) -> str:
        return f"{rows} values"

    def line(self, entry: Mapping[str, Any]) -> str:
        return f"{printable(entry['name'])} {entry['value']:.3f}"


REGRESSION = Regression()


def squared_error(logits: Any, targets: Any, count: Any, smoothing: float) -> Any:
    """The sum of squared errors / count. MLX and PyTorch have the same words for it."""
    return (targets[..., 1] * (logits - targets[..., 0]) ** 2).sum() / count

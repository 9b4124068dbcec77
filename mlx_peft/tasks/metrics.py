"""What the answers on a split are worth, whatever the task: what metrics and what they are made of look like."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

Metrics = dict[str, float]
"""``loss``, ``count`` (of images) and the task's own: see ``single_label_metrics`` and ``multi_label_metrics``."""

SHOWN = 100
"""With more classes than these, ``result.json`` has no confusion matrix, and validation leaves out what takes long."""

Answers = tuple[np.ndarray, np.ndarray]
"""The logits, float64 ``(images, classes)``, and the targets, in the form in which the task evaluates them."""


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The metrics of a split, and what they are made of."""

    metrics: Metrics
    confusion: np.ndarray | None
    """int64 ``(classes, classes)``: images of the class of the row that were taken for that of the column; None where
    there is none."""
    per_class: dict[str, np.ndarray]
    """``support``, the images of each class, and the task's figures of each, ``(classes,)``; NaN where one is not
    defined."""
    reliability: dict[str, np.ndarray]
    """``count``, ``confidence`` and ``accuracy`` of each bin of confidence, ``(bins,)``, NaN in empty bins; empty where
    no one class is answered."""

    def details(self, classes: tuple[str, ...]) -> dict[str, Any]:
        """For ``result.json`` and ``eval --json``: lists, with null for what is not defined."""
        return {
            "classes": list(classes),
            "confusion": None if self.confusion is None or len(classes) > SHOWN else self.confusion.tolist(),
            "per_class": {name: listed(values) for name, values in self.per_class.items()},
            "reliability": {name: listed(values) for name, values in self.reliability.items()},
        }


def listed(values: np.ndarray) -> list[float | None]:
    return [None if value != value else value for value in values.tolist()]


BLOCK = 2**22
"""So many numbers are held in one array."""


class Columns:
    """Numbers of all images and classes, each held once, batch after batch, and given back class by class.

    A class's lie side by side, in blocks of images: so a column costs no walk through all batches, and no second copy.
    """

    def __init__(self, dtype: type) -> None:
        self._dtype = dtype
        self._blocks: list[np.ndarray] = []
        self._filled = 0

    def __len__(self) -> int:
        """How many images there are."""
        return self._filled

    def add(self, rows: np.ndarray) -> None:
        """Some more images, ``(n, classes)``."""
        images = max(1, BLOCK // rows.shape[1])
        while len(rows):
            if (start := self._filled % images) == 0:
                self._blocks.append(np.empty((rows.shape[1], images), self._dtype))
            some, rows = rows[: images - start], rows[images - start :]
            self._blocks[-1][:, start : start + len(some)] = some.T
            self._filled += len(some)

    def column(self, label: int) -> np.ndarray:
        """What all images have of a class, ``(n,)``."""
        *full, last = (block[label] for block in self._blocks)
        return np.concatenate([*full, last[: (self._filled - 1) % len(last) + 1]])

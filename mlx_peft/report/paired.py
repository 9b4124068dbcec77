"""What each answer of a configuration is worth, image by image: what a paired test compares."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from mlx_peft.core.errors import UserError
from mlx_peft.report.gather import FinishedRun
from mlx_peft.report.groups import Group
from mlx_peft.training.predictions import Predictions, read_predictions


def _right(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """1 where the first of the largest logits is the image's class, else 0."""
    found: np.ndarray = (np.argmax(logits, axis=1) == labels).astype(float)
    return found


WORTH: Mapping[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {"top1": _right}
"""Measures that are means over images: what an image adds, float ``(images,)``, of its logits and its label. An area
under a curve is no such mean."""

APART = 1e-3
"""What the images say and what the result says may differ by this much, where two logits of an image are equal."""


@dataclass(frozen=True, eq=False)
class Worth:
    """Of a configuration: its images by identifier, sorted, and what its answers on them are worth, seeds averaged."""

    images: np.ndarray
    values: np.ndarray


class Uncompared(Exception):
    """There is nothing to compare, and why: the end of a sentence."""


def worth(group: Group, split: str, measure: str) -> Worth:
    """Of a configuration on the images of a split. Raises Uncompared where one of its runs does not say it."""
    found = [_of_run(run, split, measure) for run in group.runs]
    images = found[0].images
    if not all(np.array_equal(one.images, images) for one in found):
        raise Uncompared("its seeds were measured on different images")
    return Worth(images, np.mean([one.values for one in found], axis=0))


def _of_run(run: FinishedRun, split: str, measure: str) -> Worth:
    if measure not in WORTH:
        raise Uncompared(f"{measure} is no mean over images")
    kept = _read(run).get(split)
    if kept is None:
        raise Uncompared(f"{run.name} keeps no predictions of the {split} split")
    if kept.labels.ndim != 1:
        raise Uncompared(f"{run.name} has several labels an image")
    values, told = WORTH[measure](kept.logits, kept.labels), run.value(f"metrics.{split}.{measure}")
    if told is None or abs(values.mean() - told) > max(APART, 2 / len(values)):
        raise Uncompared(f"{run.name}: its predictions are not those of its result")
    order = np.argsort(kept.identifiers, kind="stable")
    return Worth(kept.identifiers[order], values[order])


def _read(run: FinishedRun) -> dict[str, Predictions]:
    if run.folder is None:
        return {}
    try:
        return read_predictions(run.folder) or {}
    except UserError as error:
        raise Uncompared(str(error)) from None

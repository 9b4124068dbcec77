"""What the labels of images say: of each image one class, int64 ``(n,)``; or of several classes each, whether it is
there, uint8 ``(n, classes)`` of 0 and 1."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

NONE = "none of them"
"""In the place of a class, of an image that has none."""


def several(labels: np.ndarray) -> bool:
    """Whether an image may have several classes, or none."""
    return labels.ndim == 2


def of_class(labels: np.ndarray, label: int) -> np.ndarray:
    """The rows of the images that have a class, in their order."""
    rows: np.ndarray = np.flatnonzero(labels[:, label] if several(labels) else labels == label)
    return rows


def of_none(labels: np.ndarray) -> np.ndarray:
    """The rows of the images that have no class."""
    rows: np.ndarray = np.flatnonzero(~labels.any(axis=1)) if several(labels) else np.empty(0, np.int64)
    return rows


def counts(labels: np.ndarray, classes: int) -> np.ndarray:
    """How many images have each class, int64 ``(classes,)``."""
    return labels.sum(axis=0, dtype=np.int64) if several(labels) else np.bincount(labels, minlength=classes)


def strata(labels: np.ndarray) -> np.ndarray:
    """What held-out images are spread over evenly, int64 ``(n,)``: the class, or how many classes an image has."""
    found: np.ndarray = labels.sum(axis=1, dtype=np.int64) if several(labels) else labels
    return found


def differ(labels: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Whether each row says something else than ``label``, a row itself: bool ``(n,)``."""
    other = np.asarray(labels != label)
    return np.asarray(other.any(axis=1) if several(labels) else other)


def written(label: np.ndarray) -> str:
    """A row in figures: ``3``, or a figure for each class, ``0100``."""
    return str(label) if label.ndim == 0 else (label + ord("0")).astype(np.uint8).tobytes().decode()


def named(label: np.ndarray, classes: Sequence[str]) -> str:
    """A row in words: ``mass``, ``effusion, mass``."""
    if label.ndim == 0:
        return classes[int(label)]
    return ", ".join(classes[index] for index in np.flatnonzero(label).tolist()) or NONE

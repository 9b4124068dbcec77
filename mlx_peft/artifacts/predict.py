"""What a trained model says of images that are no data set's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mlx_peft.artifacts.load import Loaded
from mlx_peft.data import eval_image
from mlx_peft.tasks.logits import finite
from mlx_peft.training.backend import load_backend
from mlx_peft.training.room import check_answering


def predict(loaded: Loaded, paths: Sequence[Path], top_k: int = 5) -> list[dict[str, Any]]:
    """The likeliest classes of image files: ``{"image": path, "predictions": [{"class": ..., "probability": ...}]}``.

    Probabilities are a softmax of the logits; where an image may have several classes, of each its own sigmoid.
    Raises UserError at an image that cannot be read, where a logit is not finite, and where there is too little memory.
    """
    size = min(loaded.experiment.data.batch_size, len(paths))
    device = load_backend(loaded.experiment.backend).computing()
    check_answering(loaded.experiment, loaded.base, len(loaded.classes), size, device)
    results: list[dict[str, Any]] = []
    for first in range(0, len(paths), max(size, 1)):
        some = paths[first : first + size]
        images = np.zeros((size, loaded.image_size, loaded.image_size, 3), np.uint8)
        for row, path in zip(images, some, strict=False):
            row[...] = eval_image(path, loaded.preprocessing, loaded.image_size)
        for path, row in zip(some, loaded.learner.logits(images), strict=False):
            logits = finite(row, f"the model for {path}")
            probabilities = sigmoid(logits) if loaded.multi_label else softmax(logits)
            best = np.argsort(-logits, kind="stable")[:top_k]
            results.append({
                "image": str(path),
                "predictions": [
                    {"class": loaded.classes[index], "probability": float(probabilities[index])} for index in best
                ],
            })  # fmt: skip
    return results


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities that add up to 1."""
    odds: np.ndarray = np.exp(logits - logits.max())
    odds /= odds.sum()
    return odds


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """Each logit's own probability."""
    odds: np.ndarray = np.exp(-np.logaddexp(0, -logits))
    return odds

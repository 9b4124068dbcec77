"""What a trained model says of images that are no data set's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mlx_peft.data import eval_image
from mlx_peft.engine.load import Loaded


def predict(loaded: Loaded, paths: Sequence[Path], top_k: int = 5) -> list[dict[str, Any]]:
    """The likeliest classes of image files: ``{"image": path, "predictions": [{"class": ..., "probability": ...}]}``.

    Raises UserError at an image that cannot be read.
    """
    size = min(loaded.experiment.data.batch_size, len(paths))
    results: list[dict[str, Any]] = []
    for first in range(0, len(paths), max(size, 1)):
        some = paths[first : first + size]
        images = np.zeros((size, loaded.image_size, loaded.image_size, 3), np.uint8)
        for row, path in zip(images, some, strict=False):
            row[...] = eval_image(path, loaded.preprocessing, loaded.image_size)
        for path, logits in zip(some, loaded.learner.logits(images).astype(np.float64), strict=False):
            odds = np.exp(logits - logits.max())
            best = np.argsort(-logits, kind="stable")[:top_k]
            results.append({
                "image": str(path),
                "predictions": [
                    {"class": loaded.classes[index], "probability": float(odds[index] / odds.sum())} for index in best
                ],
            })  # fmt: skip
    return results

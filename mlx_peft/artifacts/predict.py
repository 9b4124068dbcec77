"""What a trained model says of images that are no data set's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mlx_peft.artifacts.load import Loaded
from mlx_peft.data import eval_image
from mlx_peft.tasks.logits import finite


def predict(loaded: Loaded, paths: Sequence[Path], top_k: int = 5) -> list[dict[str, Any]]:
    """What the model's task answers of image files: ``{"image": path, "predictions": [...]}``, see ``Task.answer``.

    Of classes the likeliest: ``{"class": ..., "probability": ...}``. Raises UserError at an image that cannot be read,
    where a logit is not finite, and where there is too little memory.
    """
    size = min(loaded.recipe.batch_size, len(paths))
    loaded.check_room(size)
    results: list[dict[str, Any]] = []
    for first in range(0, len(paths), max(size, 1)):
        part = paths[first : first + size]
        images = np.zeros((size, loaded.image_size, loaded.image_size, 3), np.uint8)
        for row, path in zip(images, part, strict=False):
            row[...] = eval_image(path, loaded.preprocessing, loaded.image_size)
        for path, row in zip(part, loaded.model.logits(images), strict=False):
            logits = finite(row, f"the model for {path}")
            results.append({"image": str(path), "predictions": loaded.task.answer(logits, loaded.classes, top_k)})
    return results

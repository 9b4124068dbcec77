"""What a trained model says of images that are no data set's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mlx_peft.artifacts.load import Loaded
from mlx_peft.core.errors import UserError
from mlx_peft.core.text import counted
from mlx_peft.data import eval_image
from mlx_peft.data.looking import Watch, unwatched
from mlx_peft.tasks.logits import finite


def predict(loaded: Loaded, paths: Sequence[Path], top_k: int = 5, watch: Watch = unwatched) -> list[dict[str, Any]]:
    """What the model's task answers of image files: ``{"image": path, "predictions": [...]}``, see ``Task.answer``.

    Of classes the likeliest: ``{"class": ..., "probability": ...}``. Of an image that cannot be read, in the place of
    predictions, ``"error"``: the reason. Raises UserError where none can be read, where a logit is not finite, and
    where there is too little memory.
    """
    size = min(loaded.recipe.batch_size, len(paths))
    loaded.check_room(size)
    results: list[dict[str, Any]] = []
    for first in range(0, len(paths), max(size, 1)):
        watch("answering", first, len(paths))
        part = paths[first : first + size]
        images = np.zeros((size, loaded.image_size, loaded.image_size, 3), np.uint8)
        errors = [_read(path, row, loaded) for path, row in zip(part, images, strict=False)]
        answers = loaded.model.logits(images) if None in errors else images
        for path, error, row in zip(part, errors, answers, strict=False):
            found: dict[str, Any] = {"error": error}
            if error is None:
                logits = finite(row, f"the model for {path}")
                found = {"predictions": loaded.task.answer(logits, loaded.classes, top_k)}
            results.append({"image": str(path), **found})
    watch("answering", len(paths), len(paths))
    if results and all("error" in result for result in results):
        first_of = "" if len(paths) == 1 else f"none of the {counted(len(paths), 'image')} can be read; the first: "
        raise UserError(f"{first_of}{results[0]['error']}")
    return results


def _read(path: Path, row: np.ndarray, loaded: Loaded) -> str | None:
    """Fills a row with the image as the model sees it. Returns why it cannot be read; None where it can."""
    try:
        row[...] = eval_image(path, loaded.preprocessing, loaded.image_size)
    except UserError as error:
        return str(error)
    return None

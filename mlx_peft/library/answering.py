"""What a network answers about images, whatever framework computes it."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import numpy as np

from convert.base import Base
from mlx_peft.config.methods import MethodConfig
from mlx_peft.config.schema import Model
from mlx_peft.core.errors import UserError
from mlx_peft.core.text import named
from mlx_peft.library.prediction import Prediction, Predictions
from mlx_peft.tasks.logits import finite
from mlx_peft.vit.architecture import Architecture


class Predicting:
    """Whatever has logits for images says what it sees on them."""

    base: Base
    """The description of its weights, without the weights themselves."""
    classes: tuple[str, ...]
    """Names of the head's rows; none where they are unknown."""

    @abstractmethod
    def logits(self, images: np.ndarray) -> np.ndarray:
        """uint8 images ``(batch, height, width, 3)`` to logits, float32 ``(batch, classes)``, without a gradient."""

    def predict(
        self, images: Any, top: int = 5, *, layout: str = "NHWC", batch_size: int = 64
    ) -> Prediction | Predictions:
        """What the model says of images: one answer to one image, and as many as there are to all else.

        Args:
            images: a file, a folder, an image of Pillow's, an array of uint8, ``(height, width, 3)`` or a batch of
                them, or a list of any of these. Each is resized and cropped by the recipe of the weights; an array that
                has the model's size is taken as it is.
            top: how many of the likeliest classes a person is shown.
            layout: NCHW where arrays have their channels first.
            batch_size: images that are answered at once.

        Raises:
            UserError: a file cannot be read, or what was given is no image, such as an array that is normalised
                already; a logit is not finite.
        """
        from mlx_peft.data import given  # whoever predicts nothing needs no decoder

        sources, alone = given.taken(images, layout)
        answers: list[Prediction] = []
        for part in given.batches(sources, batch_size):
            pixels = given.stacked(part, self.base.preprocessing, self.base.architecture.img_size)
            for source, row in zip(part, self.logits(pixels), strict=True):
                file = None if isinstance(source, np.ndarray) else str(source)
                logits = finite(row, "the model" if file is None else f"the model for {file}")
                answers.append(Prediction(logits, self._names(len(row)), self.base.task, top, file))
        return answers[0] if alone else Predictions(answers)

    def _names(self, rows: int) -> tuple[str, ...]:
        """Of the head's rows; their numbers where the classes have no names."""
        if self.classes and len(self.classes) != rows:
            raise UserError(f"the model has {len(self.classes)} names of classes, and its head has {rows} rows")
        return self.classes or tuple(map(str, range(rows)))


class Answering(Predicting):
    """The part of a network that is the same in both backends."""

    architecture: Architecture
    method: MethodConfig | None
    head: Any
    description: Model | None
    """The name and the options that the model was asked for with."""

    def __repr__(self) -> str:
        """A line: of a framework's own there are hundreds."""
        name = "ViT" if self.description is None else self.description.name
        method = "" if self.method is None else f", {self.method!r}"
        classes = named(self.head.weight.shape[0], self.classes)
        return f"{type(self).__name__}({name}, {self.architecture.img_size} px, {classes}{method})"

"""A training loop that is written by hand, for the network of any framework: its images, its optimiser, its step."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, Generic

import numpy as np

from mlx_peft.config.schema import AdamW, Data
from mlx_peft.core.errors import UserError
from mlx_peft.data import given
from mlx_peft.library.asked import must_be_model
from mlx_peft.library.framework import AnyNetwork, Framework


class ByHand(Generic[AnyNetwork]):
    """The part of the library that a loop needs."""

    def __init__(self, framework: Framework[AnyNetwork]) -> None:
        self.framework = framework

    def prepare(self, model: AnyNetwork, images: Any, layout: str = "NHWC") -> Any:
        """Images as the model's input: ``(batch, size, size, 3)``, float32, normalised as its weights want them.

        Args:
            images: as ``model.predict`` takes them, and prepared in the same way; one alone is a batch of one.
            layout: NCHW where arrays have their channels first.

        Raises:
            UserError: what was given is no image, such as an array that is normalised already.
        """
        return self.framework.prepare(model, self._pixels(model, images, layout))

    def _pixels(self, model: AnyNetwork, images: Any, layout: str) -> np.ndarray:
        must_be_model(model)
        sources, _ = given.taken(images, layout)
        if not sources:
            raise UserError("there are no images to prepare")
        return given.stacked(sources, model.base.preprocessing, model.architecture.img_size)

    def optimizer(
        self,
        model: AnyNetwork,
        lr: float = 1e-3,
        weight_decay: float = 0.01,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        **options: Any,
    ) -> Any:
        """AdamW of what is trained, the same in both backends, used as the framework's own: ``update`` or ``step``.

        Weight decay is decoupled and spares biases, norms, tokens and other vectors; moments are corrected for their
        start, as torch's are and MLX's are not unless asked; LoRA+ and trained scales have their own rates. ``lr`` may
        be set between steps: ``optimizer.lr = 1e-4``. Make it after ``add_adapter``.

        Raises:
            UserError: a number is out of its range, or an option is none of these.
        """
        must_be_model(model)
        given = {"lr": lr, "weight_decay": weight_decay, "betas": betas, "eps": eps}
        return self.framework.optimizer(model, AdamW(**given, **options))

    def training_step(
        self, model: AnyNetwork, optimizer: Any, label_smoothing: float = 0.0, seed: int = 0, layout: str = "NHWC"
    ) -> Callable[[Any, Any], float]:
        """A function that trains on a batch and returns its loss: ``loss = step(images, labels)``.

        It is a step of the trainer's, penalties and dropout included, in float32 and without clipping.
        Images are taken as ``prepare`` takes them; labels are class numbers, or with several labels 0 and 1 ``(batch,
        classes)``.

        Args:
            optimizer: of ``optimizer``.
            seed: of what is dropped.
            layout: NCHW where arrays have their channels first.

        Raises:
            UserError: when it is called: images or labels are not such, or the optimiser is that of other parameters.
        """
        must_be_model(model)
        numbers = itertools.count(seed << 32)

        def step(images: Any, labels: Any) -> float:
            task, classes = model.base.task, model.head.weight.shape[0]
            pixels, answers = self._pixels(model, images, layout), np.asarray(labels)
            if len(answers) != len(pixels):
                raise UserError(f"there are {len(pixels)} images and {len(answers)} labels")
            if (fault := task.fault(answers, classes)) is not None:
                raise UserError(fault)
            weights = task.weights(answers, Data(name="labels"), classes)
            targets = task.targets(answers, len(answers), weights, label_smoothing)
            weight = task.total_weight(targets)
            return self.framework.step(model, optimizer, pixels, targets, weight, label_smoothing, next(numbers))

        return step

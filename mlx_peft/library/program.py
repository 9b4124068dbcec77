"""What a compiled model asks of a backend: a network that only answers."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from mlx_peft.config.schema import Precision


class Program(Protocol):
    """What a backend makes of a network for inference.

    Attributes:
        precision: of what is computed, and of the weights.
        merged: whether the method is part of plain layers; where it cannot be merged it stays beside them.
    """

    precision: Precision
    merged: bool

    def __call__(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Logits ``(batch, classes)`` and what the head reads, of two heads the mean, ``(batch, dim)``; float32.

        A number of images that it has not met costs a compilation, where anything is compiled.

        Args:
            images: uint8 ``(batch, size, size, 3)``.
        """

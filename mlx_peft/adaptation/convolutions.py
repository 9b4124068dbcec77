"""What a 3x3 convolution begins as, float32 ``(width, width, 3, 3)``; what is drawn is drawn by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from mlx_peft.vit.initial import uniform


def identity(width: int, seed: int, name: str) -> NDArray[np.float32]:
    """What leaves everything as it is."""
    weight = np.zeros((width, width, 3, 3), np.float32)
    weight[:, :, 1, 1] = np.eye(width, dtype=np.float32)
    return weight


def xavier(width: int, seed: int, name: str) -> NDArray[np.float32]:
    """Xavier uniform: U(-b, b), b = sqrt(6 / (9 width + 9 width))."""
    return uniform((width, width, 3, 3), (6 / (18 * width)) ** 0.5, seed, name)


CONVOLUTIONS: Mapping[str, Callable[[int, int, str], NDArray[np.float32]]] = {"identity": identity, "xavier": xavier}
"""By the name that a configuration has for each."""

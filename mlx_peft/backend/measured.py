"""What the checks measure of a step: what it keeps in memory, and parts of it on their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import mlx.core as mx
import numpy as np

from mlx_peft.backend.device import DTYPES
from mlx_peft.backend.models.preprocess import preprocess
from mlx_peft.config.schema import Precision
from mlx_peft.vit.architecture import Preprocessing

if TYPE_CHECKING:
    from mlx_peft.backend.trainer import Trainer


def saved_bytes(trainer: Trainer, images: np.ndarray, targets: np.ndarray) -> int | None:
    """Bytes of activations that a step's forward pass keeps for its backward one; None where they cannot be counted."""
    return None


def step_bytes(trainer: Trainer, step: Callable[[], object]) -> int:
    """Bytes that arrays hold at once, at most, while a step of a trainer runs: all that it has, and what it makes."""
    mx.synchronize()
    mx.reset_peak_memory()
    step()
    mx.synchronize()
    return mx.get_peak_memory()


def multiply(batch: int, m: int, k: int, n: int, precision: Precision = "float32") -> Callable[[], None]:
    """For benchmarks: a function that computes one ``(batch, m, k) @ (batch, k, n)`` and waits for it."""
    dtype = DTYPES[precision]
    a, b = mx.random.normal((batch, m, k), dtype), mx.random.normal((batch, k, n), dtype)
    mx.eval(a, b)
    return lambda: mx.eval(a @ b)


def resizing(images: np.ndarray, preprocessing: Preprocessing, size: int) -> Callable[[], None]:
    """For benchmarks: a function that makes a batch of uint8 images a model's input and waits for it."""
    prepare = mx.compile(lambda pixels: preprocess(pixels, preprocessing, size, mx.float32))
    return lambda: mx.eval(prepare(mx.array(images)))

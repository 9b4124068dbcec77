"""A model that only answers: its method merged, compiled for a few sizes of batches, in one thread for any number."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Any, get_args

import numpy as np

from mlx_peft.config.schema import Precision
from mlx_peft.core.batches import is_number_of_images
from mlx_peft.core.errors import UserError, shown
from mlx_peft.core.text import named
from mlx_peft.library.answering import Predicting
from mlx_peft.library.framework import Network
from mlx_peft.library.program import Program
from mlx_peft.library.thread import DeviceThread

BUCKETS = (1, 2, 4, 8, 16, 32)
"""The sizes of batches that a model is compiled for unless others are asked for."""


class Compiled(Predicting):
    """A model as it was when it was compiled. Any thread may ask; one thread of its own computes, batch by batch.

    A batch is filled up to the next bucket with rows that nobody reads, and one that is larger than the largest is
    answered in parts. It is a context manager, which closes it.

    Args:
        program: of the network.
        network: from which the program was made.
        buckets: see ``sizes_of``.

    Attributes:
        precision, merged: see ``Program``.
        buckets: the sizes of batches that it computes, in order.
    """

    def __init__(self, program: Program, network: Network, buckets: Iterable[int]) -> None:
        self.base, self.classes, self.buckets = network.base, network.classes, sizes_of(buckets)
        self.precision, self.merged = program.precision, program.merged
        self._size, self._rows = network.architecture.img_size, network.head.weight.shape[0]
        self._width = network.architecture.feature_dim
        self._program, self._thread = program, DeviceThread("the compiled model")
        try:
            for bucket in reversed(self.buckets):  # the largest needs the most memory: let it say so first
                self._thread.call(program, np.zeros((bucket, self._size, self._size, 3), np.uint8))
        except BaseException:
            self.close()
            raise

    def __repr__(self) -> str:
        sizes = ", ".join(map(str, self.buckets))
        return f"Compiled({self._size} px, {named(self._rows, self.classes)}, {self.precision}, batches of {sizes})"

    def __enter__(self) -> Compiled:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Answers what was asked, and nothing more: whoever asks later gets a UserError. Again, it does nothing."""
        self._thread.close()

    def logits(self, images: np.ndarray) -> np.ndarray:
        """uint8 images ``(images, size, size, 3)``, any number, to logits, float32 ``(images, classes)``.

        Raises:
            UserError: images are of another size or type, it is closed, or this process was forked after it was made.
        """
        return self._answered(images, self._rows, 0)

    def features(self, images: np.ndarray) -> np.ndarray:
        """What the head reads, float32 ``(images, dim)``, of two heads the mean; otherwise as ``logits``."""
        return self._answered(images, self._width, 1)

    def _answered(self, images: np.ndarray, width: int, which: int) -> np.ndarray:
        self._must_be_images(images)
        largest = self.buckets[-1]
        parts = [images[first : first + largest] for first in range(0, len(images), largest)]
        begun = [self._thread.begin(self._program, self._filled(part)) for part in parts]
        found = [one.result()[which][: len(part)] for one, part in zip(begun, parts, strict=True)]
        return np.concatenate(found) if found else np.empty((0, width), np.float32)

    def _must_be_images(self, images: Any) -> None:
        wanted = (self._size, self._size, 3)
        if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.shape[1:] != wanted:
            kind = f"{images.dtype} {images.shape}" if isinstance(images, np.ndarray) else type(images).__name__
            raise UserError(
                f"images should be an array of uint8, (images, {self._size}, {self._size}, 3), not {kind}: predict "
                "takes files and images of any size"
            )

    def _filled(self, images: np.ndarray) -> np.ndarray:
        """Images up to the next bucket, with rows that nobody reads behind them."""
        bucket = next(size for size in self.buckets if size >= len(images))
        more = np.zeros((bucket - len(images), *images.shape[1:]), np.uint8)
        return np.concatenate([images, more]) if len(more) else images


def sizes_of(buckets: Iterable[int]) -> tuple[int, ...]:
    """Sizes of batches in order, each once. Raises UserError where there is none, or one is no number of images."""
    sizes: Sequence[Any] = tuple(buckets) if isinstance(buckets, Iterable) else (buckets,)
    if not sizes or not all(map(is_number_of_images, sizes)):
        raise UserError(f"buckets should be numbers of images, such as {BUCKETS}, not {shown(buckets)}")
    return tuple(sorted(set(map(int, sizes))))


def must_be_precision(precision: Any) -> None:
    """Raises UserError for what is no precision; None is the device's own."""
    if precision is not None and precision not in get_args(Precision):
        raise UserError(f"precision should be one of {', '.join(get_args(Precision))}, not {shown(precision)}")

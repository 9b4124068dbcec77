"""What only one framework has, and is loaded by its name: exporters, and other libraries to compare ours with."""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Sized
from pathlib import Path
from typing import Protocol

import numpy as np

from convert.base import Base
from mlx_peft.core.border import Tensors


class Exporter(Protocol):
    """The module of another runtime's format. Whatever goes wrong in it is a ValueError, or an error of the library it
    stands on."""

    def write(self, path: Path, base: Base, tensors: Tensors, classes: Sequence[str]) -> None:
        """Writes ``path``, and perhaps files beside it."""
        ...

    def prove(self, path: Path, base: Base, tensors: Tensors, classes: Sequence[str]) -> tuple[float | None, str]:
        """Checks what ``write`` wrote against the tensors.

        Returns the largest relative difference of the logits, None where the format cannot be computed on this machine,
        and a sentence that says what was and what was not checked. Raises ValueError where the file is wrong.
        """
        ...


class Foreign(Protocol):
    """The module that opens a file or folder as its own library does."""

    def logits(self, opener: str, path: Path, base: Base, images: np.ndarray) -> np.ndarray:
        """The logits of uint8 images ``(batch, size, size, 3)``; without a head the features, by one of its openers.

        Raises ImportError where the library is not installed, and UserError where it has no words for the model.
        """
        ...


class Loader(Protocol):
    """torch's DataLoader."""

    @property
    def dataset(self) -> Sized: ...

    def __iter__(self) -> Iterable[object]: ...


class Loaders(Protocol):
    """The module that makes torch's DataLoader of a folder of images."""

    def loader(self, root: str, image_size: int, batch_size: int, workers: int, interpolation: str) -> Loader:
        """Shuffled batches of an image folder, cropped at random, flipped, as uint8."""
        ...

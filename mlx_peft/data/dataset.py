"""What a data set is once opened: classes, and splits of images with labels."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np

from mlx_peft.config.errors import UserError
from mlx_peft.data.reading import read_image


class Images(Protocol):
    """An ordered collection of images; safe to read from several threads."""

    @property
    def identifiers(self) -> Sequence[str]:
        """A name for each image, which stays the same wherever the data set lies."""
        ...

    @property
    def stored_size(self) -> tuple[int, int] | None:
        """Height and width where every image has the same and they cross to the device as they are; else None."""
        ...

    def __len__(self) -> int: ...

    def take(self, rows: np.ndarray) -> Images:
        """Those images, in that order."""
        ...

    def read(self, index: int) -> np.ndarray:
        """One image, uint8 ``(height, width, 3)`` RGB; may be a read-only view. Raises UserError if it is broken."""
        ...


@dataclass(frozen=True, eq=False)
class ArrayImages:
    """Small images of one size, held in memory: grey ``(n, height, width)`` or RGB ``(n, height, width, 3)``, uint8."""

    pixels: np.ndarray
    source: str
    rows: np.ndarray

    @classmethod
    def whole(cls, pixels: np.ndarray, source: str) -> ArrayImages:
        """All rows of an array; `source` names it in the identifiers."""
        return cls(pixels, source, np.arange(len(pixels)))

    @property
    def identifiers(self) -> list[str]:
        return [f"{self.source}/{row}" for row in self.rows]

    @property
    def stored_size(self) -> tuple[int, int]:
        return self.pixels.shape[1], self.pixels.shape[2]

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, rows: np.ndarray) -> ArrayImages:
        return replace(self, rows=self.rows[rows])

    def read(self, index: int) -> np.ndarray:
        image: np.ndarray = self.pixels[self.rows[index]]
        return image if image.ndim == 3 else np.broadcast_to(image[..., None], (*image.shape, 3))


@dataclass(frozen=True)
class FileImages:
    """Image files below a folder, by their POSIX paths relative to it."""

    root: Path
    paths: tuple[str, ...]

    @property
    def identifiers(self) -> tuple[str, ...]:
        return self.paths

    @property
    def stored_size(self) -> None:
        return None

    def __len__(self) -> int:
        return len(self.paths)

    def take(self, rows: np.ndarray) -> FileImages:
        return replace(self, paths=tuple(self.paths[row] for row in rows))

    def read(self, index: int) -> np.ndarray:
        try:
            return read_image(self.root / self.paths[index])
        except UserError as error:
            raise UserError(f"{error}; mend or remove it, or set data.unreadable: skip") from error


@dataclass(frozen=True, eq=False)
class Split:
    """Images and their labels, int64 ``(size,)``, in a fixed order."""

    name: str
    images: Images
    labels: np.ndarray

    @property
    def size(self) -> int:
        return len(self.labels)

    @cached_property
    def sha256(self) -> str:
        """Hex digest of the ordered identifiers and labels: equal where two runs saw the same split."""
        digest = hashlib.sha256()
        for identifier, label in zip(self.images.identifiers, self.labels, strict=True):
            digest.update(f"{identifier}\0{label}\n".encode("utf-8", "surrogateescape"))
        return digest.hexdigest()

    def take(self, rows: np.ndarray, name: str) -> Split:
        """Part of the split, under another name."""
        return Split(name, self.images.take(rows), self.labels[rows])


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set with its splits; `notes` says, for a person, what was left out or fetched."""

    name: str
    classes: tuple[str, ...]
    train: Split
    val: Split | None
    test: Split | None
    notes: tuple[str, ...] = ()

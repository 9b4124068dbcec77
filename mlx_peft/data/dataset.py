"""What a data set is once opened: classes, and splits of images with labels."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np

from mlx_peft.core.errors import UserError
from mlx_peft.data.carried import Contents, Pixels
from mlx_peft.data.checked import file_mark, mark
from mlx_peft.data.looking import CHUNK, Watch, unwatched
from mlx_peft.data.names import spelled
from mlx_peft.data.reading import decode_image, file_bytes, read_image
from mlx_peft.data.strangers import HEAD, head_of, stranger
from mlx_peft.data.unread import Unread
from mlx_peft.tasks.single_label import SINGLE_LABEL
from mlx_peft.tasks.task import Task

ADVICE = "; mend it, or set data.unreadable: skip"


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

    def portable(self) -> Images:
        """The same images, which another process can have whole: pickled, and each at the cost of one. For a few."""
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

    def portable(self) -> Pixels:
        return Pixels(self.pixels[self.rows], self.identifiers)


@dataclass(frozen=True)
class FileImages:
    """Image files below a folder, by their POSIX paths relative to it."""

    root: Path
    paths: tuple[str, ...]
    unreadable: Callable[[], object] | None = field(default=None, compare=False, repr=False)
    """Called where one cannot be read."""

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
        path = self.root / self.paths[index]
        return _or_skip(read_image, path, head=lambda: head_of(path), unreadable=self.unreadable)

    def marks(self, watch: Watch = unwatched) -> np.ndarray:
        """What tells each file, as it is now, from every other: uint64 ``(n,)``. See ``data.checked``."""
        root, found = os.path.abspath(self.root), np.empty(len(self.paths), np.uint64)
        for number, path in enumerate(self.paths):
            if number % CHUNK == 0:
                watch("asking for sizes and times", number, len(self.paths))
            found[number] = file_mark(f"{root}/{path}")
        return found

    def encoded(self, index: int) -> bytes:
        """The bytes of a file. Raises UserError where it cannot be read."""
        return file_bytes(self.root / self.paths[index])

    def portable(self) -> FileImages:
        return self


@dataclass(frozen=True, eq=False)
class EncodedImages:
    """Image files in a column of a table; `cell` gives the bytes of a row, `source` names it in the identifiers."""

    cell: Callable[[int], bytes]
    source: str
    rows: np.ndarray
    stamp: int = 0
    """What tells the table, as it is now, from every other."""
    unreadable: Callable[[], object] | None = None
    """Called where one cannot be read."""

    @property
    def identifiers(self) -> list[str]:
        return [f"{self.source}/{row}" for row in self.rows]

    @property
    def stored_size(self) -> None:
        return None

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, rows: np.ndarray) -> EncodedImages:
        return replace(self, rows=self.rows[rows])

    def read(self, index: int) -> np.ndarray:
        data = self.encoded(index)
        name = f"{self.source}/{self.rows[index]}"
        return _or_skip(decode_image, data, name, head=lambda: data[:HEAD], unreadable=self.unreadable)

    def marks(self, watch: Watch = unwatched) -> np.ndarray:
        """What tells each image, in the table as it is now, from every other: uint64 ``(n,)``."""
        return np.array([mark(self.stamp, row) for row in self.rows.tolist()], np.uint64)

    def encoded(self, index: int) -> bytes:
        """The bytes of a file."""
        return self.cell(int(self.rows[index]))

    def portable(self) -> EncodedImages:
        return replace(self, cell=Contents.of(self.cell, self.rows.tolist()))


def _or_skip(
    read: Callable[..., np.ndarray],
    *arguments: object,
    head: Callable[[], bytes],
    unreadable: Callable[[], object] | None,
) -> np.ndarray:
    """An image, or a UserError that also says what the file is, as far as its head tells, and what to do."""
    try:
        return read(*arguments)
    except UserError as error:
        if unreadable is not None:
            unreadable()
        kind = stranger(head())
        raise UserError(f"{error}{f': it is {kind}' if kind else ''}{ADVICE}") from error


@dataclass(frozen=True, eq=False)
class Split:
    """Images and their labels, in a fixed order.

    labels: ``(size, ...)``, as the task has them: of a single label int64 ``(size,)``.
    groups: ``(size,)``, numbers or names: what belongs together (a patient, a cluster of near-duplicates), if known.
    """

    name: str
    images: Images
    labels: np.ndarray
    groups: np.ndarray | None = None
    task: Task = SINGLE_LABEL
    unread: Unread | None = None
    """Where an image that cannot be read is left out of its batch: what was. None: it is refused."""

    @property
    def size(self) -> int:
        return len(self.labels)

    @cached_property
    def sha256(self) -> str:
        """Hex digest of the ordered identifiers, accents in one spelling, and labels: equal where two runs saw the same
        split."""
        digest = hashlib.sha256()
        for identifier, label in zip(self.images.identifiers, self.labels, strict=True):
            digest.update(f"{spelled(identifier)}\0{self.task.written(label)}\n".encode("utf-8", "surrogateescape"))
        return digest.hexdigest()

    def take(self, rows: np.ndarray, name: str) -> Split:
        """Part of the split, under another name."""
        groups = None if self.groups is None else self.groups[rows]
        return Split(name, self.images.take(rows), self.labels[rows], groups, self.task, self.unread)


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set with its splits; `notes` says, for a person, what was left out or fetched."""

    name: str
    classes: tuple[str, ...]
    train: Split
    val: Split | None
    test: Split | None
    notes: tuple[str, ...] = ()

    @property
    def task(self) -> Task:
        """What the labels of its splits are."""
        return self.train.task

    @property
    def splits(self) -> dict[str, Split]:
        """The splits that there are, by name."""
        parts = {"train": self.train, "val": self.val, "test": self.test}
        return {name: split for name, split in parts.items() if split is not None}

    @property
    def unread(self) -> Unread | None:
        """What could not be read of all splits, where that is left out of its batch."""
        return self.train.unread

    def tolerant(self) -> Dataset:
        """The data set with images that cannot be read left out of their batches, and remembered in one place."""
        unread = Unread()
        train, val, test = (split and replace(split, unread=unread) for split in (self.train, self.val, self.test))
        assert train is not None
        return replace(self, train=train, val=val, test=test)

    def without_test(self) -> Dataset:
        """What training and selection may see."""
        return replace(self, test=None)

"""Images in rows of Parquet files, asked about one after the other: where each lies, and then what is there.

Whoever answers reads them a row group at a time, however many files and rows there are.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, islice, repeat
from pathlib import Path
from typing import NamedTuple

from mlx_peft.core.errors import UserError
from mlx_peft.core.text import counted
from mlx_peft.data.arrow import Table, check_installed, reason
from mlx_peft.data.columns import USUAL
from mlx_peft.data.lists import printed
from mlx_peft.data.names import folded

SUFFIX = ".parquet"


class Cell(NamedTuple):
    """Where an image lies: the row of a row group, counted from 0, in a column of a file."""

    file: str
    column: str
    group: int
    row: int


class Lacking(NamedTuple):
    """There is no image, and why: the end of a sentence."""

    reason: str


class Named(NamedTuple):
    """An image's name, ``photos.parquet:17`` for the row 17 of the file, counted from 0; and where it lies."""

    name: str
    content: Cell | Lacking


@dataclass(frozen=True)
class File:
    """A Parquet file: its column of images, and the rows of each row group; or why it has none."""

    name: str
    column: str = ""
    groups: Sequence[int] = ()
    lacking: Lacking | None = None

    def __len__(self) -> int:
        return sum(self.groups) if self.lacking is None else 1

    def __iter__(self) -> Iterator[Named]:
        if self.lacking is not None:
            yield Named(self.name, self.lacking)
        first = 0
        for group, size in enumerate(self.groups):
            for row in range(size):
                yield Named(f"{self.name}:{first + row}", Cell(self.name, self.column, group, row))
            first += size


@dataclass(frozen=True)
class Rows:
    """The rows of files, in their order; a file that cannot be read is one of which that is said."""

    files: Sequence[File]

    def __len__(self) -> int:
        return sum(map(len, self.files))

    def __iter__(self) -> Iterator[Named]:
        return chain.from_iterable(self.files)

    @property
    def longest(self) -> int:
        """Letters of the longest name, at most."""
        return max(len(f"{file.name}:{len(file)}") for file in self.files)


def rows_in(files: Sequence[Path]) -> Rows:
    """The rows of Parquet files, of which nothing but what they say of themselves is read here.

    The images are in the only column of files (or of structs with their ``bytes``, as the Hugging Face hub has them);
    of several, in the one with a usual name.

    Raises UserError where Arrow is not installed, and, of a single file, where it cannot be read or has no images.
    """
    check_installed("images")
    found = []
    for path in files:
        try:
            found.append(File(str(path), *_column_of(path)))
        except UserError as error:
            if len(files) == 1:
                raise
            found.append(File(str(path), lacking=Lacking(str(error))))
    return Rows(found)


def _column_of(path: Path) -> tuple[str, list[int]]:
    """A file's column of images, and the rows of each of its row groups."""
    try:
        table = Table([path])
        found = [name for name in table.columns if table.holds_images(name)]
        usual = [name for name in found if folded(name) in USUAL["image"]]
        if len(found) != 1 and len(usual) != 1:
            there = ", ".join(printed((found or table.columns)[:20])) or "none"
            what = "several columns may hold images" if found else "no column holds images"
            raise UserError(f"{path}: {what}; there is {there}: one of them should be called image")
        column = (usual if len(usual) == 1 else found)[0]
        return column, table.rows_of(column)
    except UserError:
        raise
    except Exception as error:  # Arrow's readers raise almost anything on damaged bytes
        raise UserError(f"{path} is not a readable Parquet file ({reason(error)})") from error


class Reader:
    """What lies in cells, for whoever asks for those of a row group in their order: it is gone through once then."""

    def __init__(self) -> None:
        self._at: tuple[str, str, int] | None = None
        self._next = 0
        self._rows: Iterator[bytes | Lacking] = iter(())

    def read(self, cell: Cell) -> bytes | Lacking:
        """The bytes of an image; a path in their place is not followed. Where a row group is damaged, what comes before
        that is read."""
        if self._at != cell[:3] or cell.row < self._next:
            self._at, self._next, self._rows = cell[:3], 0, _contents(*cell[:3])
        skipped = cell.row - self._next
        self._next = cell.row + 1
        return next(islice(self._rows, skipped, None))


def _contents(file: str, column: str, group: int) -> Iterator[bytes | Lacking]:
    """Of each row of a row group, and without end of what is behind the last that can be read, why it cannot."""
    last = Lacking("the file has fewer rows than it had")
    try:
        for which, contents in _table(file, os.stat(file).st_mtime_ns).group(column, group):
            for place in which.tolist():
                yield contents[place] if place >= 0 else Lacking("its image is missing")
    except Exception as error:  # as above
        last = Lacking(f"cannot be read ({reason(error)})")
    yield from repeat(last)


@lru_cache(maxsize=1)
def _table(file: str, changed: int) -> Table:
    return Table([Path(file)])


def told(files: Sequence[str]) -> str:
    """A note about Parquet files in a folder that has images too."""
    return f"not read: {counted(len(files), 'Parquet file')} beside images ({', '.join(printed(files[:3]))}); name them"

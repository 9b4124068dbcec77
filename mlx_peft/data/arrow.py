"""Parquet files read column by column, in memory that is bounded by what their pages hold and not by what they become.

A page may say "the same image" a million times in a few bytes. So texts and images are read as Arrow dictionaries, in
which they are there once; and what the files say of themselves (rows, bytes once unpacked) is looked at first.
"""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mlx_peft.core.errors import UserError
from mlx_peft.core.text import counted
from mlx_peft.data.checked import file_mark, mark
from mlx_peft.data.columns import SAMPLE
from mlx_peft.data.unpacked import Unpacked, unpacked

MAX_ROWS = 10_000_000
"""The files of a split have at most so many rows: those of a published set have 1.3 million."""

MAX_CELLS = 2**27
"""A column of labels, groups or splits has at most so many bytes unpacked, in all files of a split together."""

MAX_FOOTER = 2**24
"""A file describes its columns and row groups in at most so many bytes, of which Arrow makes many times as much in
memory."""

MAX_GROUP = 2**32
"""A column's part of a row group has at most so many bytes unpacked; the hub's have some hundred million."""

MAX_RATIO, SMALL = 100, 2**30
"""All images unpacked are at most so many times the files, or so many bytes: images are compressed already."""

REPEATS = 2**26
"""A column's part of a row group of up to so many bytes unpacked is read as a dictionary, in about three times that
memory. Larger ones are read a few rows at a time, and may not become more than twice as much."""

_MANY, _FEW = 2**16, 16
"""So many rows are read at a time, where a dictionary has few values; and otherwise."""


class Table:
    """The Parquet files of a split as one table.

    Raises UserError where they are larger than any real ones or contradict themselves; ArrowException, or almost
    anything else, where they are damaged.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self.files = files
        self._metadata = []
        for path in files:
            with self._open(path) as file:
                self._metadata.append(file.metadata)
                schema = file.schema_arrow
                if path is files[0]:
                    self.schema = schema
        rows = [sum(group.num_rows for group in self._groups(metadata)) for metadata in self._metadata]
        for path, metadata, count in zip(files, self._metadata, rows, strict=True):
            if metadata.num_rows != count or count < 0:
                raise UserError(
                    f"{path} is damaged: it claims {counted(metadata.num_rows, 'row')}, and its row groups have "
                    f"{count:,}"
                )
        self.size = sum(rows)
        if self.size > MAX_ROWS:
            raise UserError(
                f"{files[0]} and the files beside it have {self.size:,} rows; at most {MAX_ROWS:,} are read"
            )

    @property
    def columns(self) -> list[str]:
        return list(self.schema.names)

    @cached_property
    def stamp(self) -> int:
        """What tells the files, as they are now, from all others."""
        return mark(*(file_mark(os.path.abspath(path)) for path in self.files))

    def names(self, column: str) -> list[str] | None:
        """The names of a column's classes, where ``datasets`` has written them into the first file."""
        try:
            features = json.loads(self.schema.metadata[b"huggingface"])["info"]["features"]
            found = features[column]["names"]
        except (TypeError, KeyError, ValueError):
            return None
        return found if isinstance(found, list) and all(isinstance(name, str) for name in found) else None

    def cells(self, column: str) -> tuple[list[Any], np.ndarray]:
        """A column's different values, none of them None, and which each row has: int64 ``(size,)``, -1 for none."""
        values: dict[Any, int] = {}
        rows = [np.empty(0, np.int64)]
        for path, leaf in self._leaves(column, "", MAX_CELLS):
            with self._open(path, leaf) as file:
                for chunk in file.read(columns=[leaf]).column(column).chunks:
                    encoded = chunk if hasattr(chunk, "dictionary") else chunk.dictionary_encode()
                    place = [values.setdefault(value, len(values)) for value in encoded.dictionary.to_pylist()]
                    rows.append(np.array([*place, -1])[_indices(encoded)])
        codes = np.concatenate(rows)
        if None in values:  # a null that is in the dictionary itself
            codes[codes == values[None]] = -1
        return list(values), codes

    def sample(self) -> dict[str, list[Any]]:
        """The first cells of the columns that hold texts or whole numbers."""
        import pyarrow.types as kinds

        def readable(kind: Any) -> bool:
            return bool(kinds.is_integer(kind) or kinds.is_string(kind) or kinds.is_large_string(kind))

        named = [field.name for field in self.schema if readable(field.type)]
        with self._open(self.files[0], *named) as file:
            first = self._metadata[0].row_group(0) if self._metadata[0].num_row_groups else None
            sizes = {} if first is None else _sizes(first)
            named = [name for name in named if sizes.get(name, MAX_CELLS) < MAX_CELLS / len(named)]
            batch = next(iter(file.iter_batches(SAMPLE, row_groups=[0], columns=named)), None) if named else None
            return {name: batch.column(name).to_pylist() for name in named} if batch is not None else {}

    def images(self, column: str, folder: Path | None) -> Unpacked:
        """A column of files, or of structs with their ``bytes``, unpacked: see ``data.unpacked``.

        Raises UserError where there is not the room for it, or it holds something else.
        """
        leaves, below, needed = self._image_leaves(column)

        def parts() -> Iterator[tuple[np.ndarray, list[bytes]]]:
            for path, leaf in leaves:
                yield from self._contents(path, column, leaf, below)

        key = mark(*map(os.path.abspath, self.files), column)
        try:
            return unpacked(key, mark(self.stamp, column), parts(), folder)
        except OSError as error:
            raise UserError(
                f"{self.files[0]}: {column!r} cannot be unpacked, up to {needed:,} bytes ({error.strerror or error}); "
                "make room, or name another place in data.cache.folder"
            ) from error

    def holds_images(self, column: str) -> bool:
        """Whether it is one of files, or of structs with their ``bytes``."""
        return self._below(column) is not None

    def rows_of(self, column: str) -> list[int]:
        """The rows of each row group, of all files. Raises UserError as ``images``, and unpacks nothing."""
        self._image_leaves(column)
        return [group.num_rows for metadata in self._metadata for group in self._groups(metadata)]

    def group(self, column: str, number: int) -> Iterator[tuple[np.ndarray, list[bytes]]]:
        """Of some rows at a time of a row group of the first file: which contents each has, int64, -1 for none; those.

        Raises UserError as ``images``.
        """
        ((path, leaf), *_), below, _ = self._image_leaves(column)
        yield from self._contents(path, column, leaf, below, (number,))

    def _below(self, column: str) -> str | None:
        """Where in a column the images are: "" for the column itself; None where it is none of images."""
        import pyarrow.types as kinds

        kind = self.schema.field(column).type
        inner = kind.field("bytes").type if kinds.is_struct(kind) and kind.get_field_index("bytes") >= 0 else kind
        if not (kinds.is_binary(inner) or kinds.is_large_binary(inner)):
            return None
        return "bytes" if inner is not kind else ""

    def _image_leaves(self, column: str) -> tuple[list[tuple[Path, str]], str, int]:
        """Each file with the column's path in it, what of that path is below the column, and bytes once unpacked."""
        below = self._below(column)
        if below is None:
            kind = self.schema.field(column).type
            raise UserError(f"{self.files[0]}: the column {column!r} should hold images, not {kind}")
        leaves = self._leaves(column, below, MAX_GROUP)
        needed = sum(_sizes(group)[leaf] for m, (_, leaf) in zip(self._metadata, leaves, strict=True)
                     for group in self._groups(m))  # fmt: skip
        most = max(SMALL, MAX_RATIO * sum(path.stat().st_size for path in self.files))
        if needed > most:
            raise UserError(f"{self.files[0]}: {column!r} has {needed:,} bytes unpacked; at most {most:,} are read")
        return leaves, below, needed

    def _contents(
        self, path: Path, column: str, leaf: str, below: str, numbers: Sequence[int] | None = None
    ) -> Iterator[tuple[np.ndarray, list[bytes]]]:
        """Of some rows at a time, the different contents and which each row has; of these row groups, None: of all."""
        with self._open(path, leaf) as repeated, self._open(path) as plain:
            for number in range(plain.metadata.num_row_groups) if numbers is None else numbers:
                size, done = _sizes(plain.metadata.row_group(number))[leaf], 0
                file, rows = (repeated, _MANY) if size <= REPEATS else (plain, _FEW)
                for batch in file.iter_batches(rows, row_groups=[number], columns=[leaf]):
                    which, contents = _different(batch.column(column), below)
                    done += sum(map(len, contents))
                    if file is plain and done > 2 * size:
                        raise UserError(
                            f"{path}: {column!r} repeats images: {size:,} bytes in row group {number} become more than "
                            f"twice as many; write row groups of at most {REPEATS:,} bytes"
                        )
                    yield which, contents

    def _open(self, path: Path, *dictionaries: str) -> Any:
        """A file, of which these columns are read as dictionaries. Nothing is read ahead."""
        from pyarrow import parquet

        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 8))
            end = file.read(8)
        if MAX_FOOTER < int.from_bytes(end[:4], "little") < size and end.endswith(b"PAR1"):
            most = f"{MAX_FOOTER // 2**20} MiB"
            raise UserError(f"{path} needs more than {most} to say what is in it, the most that is read")
        return parquet.ParquetFile(path, read_dictionary=list(dictionaries), buffer_size=2**20, pre_buffer=False)

    def _leaves(self, column: str, below: str, most: int) -> list[tuple[Path, str]]:
        """Each file, and the path of the column in it. Raises UserError where it is not a plain one, or larger than
        `most` bytes: in a row group of images, in all of another column."""
        leaf = f"{column}.{below}" if below else column
        total = 0
        for path, metadata in zip(self.files, self._metadata, strict=True):
            for group in self._groups(metadata):
                sizes = _sizes(group)
                if leaf not in sizes:
                    raise UserError(f"{path}: {column!r} has no text, number or image for each row")
                total = sizes[leaf] if below or most > MAX_CELLS else total + sizes[leaf]
                if not 0 <= total <= most:
                    raise UserError(f"{path}: {column!r} has {total:,} bytes unpacked; at most {most:,} are read")
        return [(path, leaf) for path in self.files]

    @staticmethod
    def _groups(metadata: Any) -> Iterator[Any]:
        return (metadata.row_group(number) for number in range(metadata.num_row_groups))


def _sizes(group: Any) -> dict[str, int]:
    """Bytes of each column of a row group, unpacked, by its path: of those that have a cell for each row."""
    chunks, rows = map(group.column, range(group.num_columns)), group.num_rows
    return {chunk.path_in_schema: chunk.total_uncompressed_size for chunk in chunks if chunk.num_values == rows}


def _different(array: Any, below: str) -> tuple[np.ndarray, list[bytes]]:
    """Which of the contents each row of an array has, int64, -1 for none; and those contents."""
    missing = array.is_null().to_numpy(zero_copy_only=False)
    if below:
        array = array.field(below)
    if not hasattr(array, "dictionary"):
        contents = [None if lacks else cell for lacks, cell in zip(missing.tolist(), array.to_pylist(), strict=True)]
        given = np.array([content is not None for content in contents], bool)
        return np.where(given, given.cumsum() - 1, -1), [content for content in contents if content is not None]
    which = np.where(missing, -1, _indices(array))
    used, which = np.unique(which, return_inverse=True)
    lacking = int(used.size and used[0] < 0)
    return which - lacking, [array.dictionary[index].as_py() for index in used[lacking:].tolist()]


def _indices(array: Any) -> np.ndarray:
    """Which of its dictionary's values each row has, int64, -1 for none."""
    found: np.ndarray = array.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    return found


def check_installed(what: str) -> None:
    """Raises UserError, beginning with ``what`` is in Parquet, in the plural, where Arrow is not there."""
    if importlib.util.find_spec("pyarrow") is None:
        raise UserError(f"{what} in Parquet need the package pyarrow: pip install 'mlx-peft[datasets]'")


def reason(error: Exception) -> str:
    """What one of Arrow's errors says, in a line."""
    return str(error.__cause__ or error).partition("\n")[0] or type(error).__name__

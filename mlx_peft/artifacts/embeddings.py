"""Features of any number of images written to a file as they come: nothing stands in its place before it is whole."""

from __future__ import annotations

import importlib.util
import shutil
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mlx_peft.artifacts.predict import Features
from mlx_peft.core.errors import UserError
from mlx_peft.core.text import printable
from mlx_peft.core.writing import move, staging
from mlx_peft.data.questions import Question

GROUP = 8192
"""A row group of Parquet has so many images, and NumPy's file gets so many names at a time."""


class Writer(Protocol):
    """A file that is being written."""

    def add(self, asked: Sequence[Question], rows: np.ndarray) -> None:
        """Some images with their adapters, and the features of each, float32 ``(len(asked), dim)``."""

    def end(self) -> None:
        """What is left is written."""


class Npz:
    """NumPy's: ``features``, float32 ``(images, dim)``; ``images`` and ``adapters``, text ``(images,)``."""

    def __init__(self, path: Path) -> None:
        self._path, self._dim = path, 0
        self._rows = open(path.with_name("rows"), "w+b")  # noqa: SIM115
        self._images: list[str] = []
        self._adapters: list[str] = []

    def add(self, asked: Sequence[Question], rows: np.ndarray) -> None:
        self._dim = rows.shape[1]
        self._rows.write(np.ascontiguousarray(rows, "<f4").data)
        self._images += [question.image for question in asked]
        self._adapters += [question.adapter or "" for question in asked]

    def end(self) -> None:
        count = len(self._images)
        with zipfile.ZipFile(self._path, "w") as file, self._rows as rows:
            rows.seek(0)
            with _member(file, "features", "<f4", (count, self._dim)) as member:
                shutil.copyfileobj(rows, member)
            for name, texts in (("images", self._images), ("adapters", self._adapters)):
                kind = f"<U{max([1, *map(len, texts)])}"
                with _member(file, name, kind, (count,)) as member:
                    for first in range(0, count, GROUP):
                        member.write(np.array(texts[first : first + GROUP], kind).tobytes())
        self._path.with_name("rows").unlink()


@contextmanager
def _member(file: zipfile.ZipFile, name: str, kind: str, shape: tuple[int, ...]) -> Iterator[Any]:
    """An array of an archive, its header written."""
    with file.open(f"{name}.npy", "w", force_zip64=True) as member:
        header = {"descr": kind, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(member, header)
        yield member


class Parquet:
    """The columns ``image`` and ``adapter``, text, and ``features``, a list of ``dim`` float32."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: Any = None
        self._waiting: list[tuple[Sequence[Question], np.ndarray]] = []

    def add(self, asked: Sequence[Question], rows: np.ndarray) -> None:
        self._waiting.append((asked, rows))
        if sum(len(rows) for _, rows in self._waiting) >= GROUP:
            self._write()

    def end(self) -> None:
        if self._waiting:
            self._write()
        self._file.close()

    def _write(self) -> None:
        import pyarrow as pa
        from pyarrow import parquet

        asked = [question for some, _ in self._waiting for question in some]
        rows = np.concatenate([rows for _, rows in self._waiting])
        self._waiting = []
        features = pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1), pa.float32()), rows.shape[1])
        columns = {
            "image": pa.array([_text(question.image) for question in asked], pa.string()),
            "adapter": pa.array([question.adapter for question in asked], pa.string()),
            "features": features,
        }
        table = pa.table(columns)
        if self._file is None:
            self._file = parquet.ParquetWriter(self._path, table.schema, use_dictionary=["adapter"])
        self._file.write_table(table, row_group_size=len(asked))


def _text(name: str) -> str:
    r"""A file's name as Parquet can hold it: a byte that is not UTF-8 is ``\xff``."""
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return printable(name)
    return name


KINDS: dict[str, Callable[[Path], Writer]] = {".npz": Npz, ".parquet": Parquet}
"""By the ending of the file's name."""


def check_kind(path: Path) -> None:
    """Before any work: raises UserError where what is needed to write such a file is not installed."""
    if path.suffix.lower() == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        raise UserError("features in Parquet need the package pyarrow: pip install 'mlx-peft[datasets]', or write .npz")


def write(path: Path, parts: Iterable[Features]) -> int:
    """Writes the features of all parts; returns the width of each image's.

    Raises UserError for what the disk refuses; whatever the parts raise, the file is as it was then.
    """
    dim = 0
    with staging(path) as folder:
        writer = KINDS[path.suffix.lower()](folder / path.name)
        for part in parts:
            if part.asked:
                writer.add(part.asked, part.rows)
                dim = part.rows.shape[1]
        writer.end()
        move(folder / path.name, path)
    return dim

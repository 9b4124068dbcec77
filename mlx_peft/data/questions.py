"""Images that somebody asks about, as they are named: files, folders, lists, a table with an adapter for each."""

from __future__ import annotations

import os
import select
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from mlx_peft.core.errors import UserError
from mlx_peft.core.paths import given_path
from mlx_peft.data.cells import read_cells
from mlx_peft.data.columns import USUAL
from mlx_peft.data.lists import encoding_of, printed, read_list, read_text
from mlx_peft.data.litter import files_below
from mlx_peft.data.names import folded
from mlx_peft.data.parquet_rows import SUFFIX, Cell, Lacking, Named, Reader, Rows, rows_in
from mlx_peft.data.parquet_rows import told as not_read
from mlx_peft.data.reading import SUFFIXES, decode_image
from mlx_peft.data.stream import PAUSE, Pause

LIST = ".txt"
"""A file whose name ends so lists images, a path a line."""

STREAM = "-"
"""This name stands for a list on standard input."""

BLOCK, SOON = 2**16, 0.05
"""So many bytes of a list are read at a time; what is there is answered where the next ones take more seconds."""

BARE = ("", "-")
"""In the place of an adapter's name, either asks the bare model."""

MOST_LISTED = 20
"""A message names at most so many columns."""


HELD = 2**28
"""Where images of Parquet files are read, so many bytes of them wait for what was asked before."""


class Question(NamedTuple):
    """An image's name, and which adapter is asked; None: there is one model, or the bare one is meant.

    Attributes:
        content: None: the name is that of its file. Else where it lies in a file with many; or, once that is read, its
            bytes.
    """

    image: str
    adapter: str | None = None
    content: Cell | bytes | Lacking | None = None

    @property
    def file(self) -> str:
        """In which the image is."""
        return self.content.file if isinstance(self.content, Cell) else self.image

    def picture(self) -> Path | np.ndarray:
        """Its file, or uint8 ``(height, width, 3)``. Raises UserError where there is none, or it cannot be read."""
        if isinstance(self.content, bytes):
            return decode_image(self.content, self.image)
        if isinstance(self.content, Lacking):
            said = self.content.reason
            raise UserError(said if said.startswith(self.image) else f"{self.image}: {said}")
        return Path(self.image)


@dataclass(frozen=True)
class Questions:
    """Those that there are, in their order; they can be gone through once.

    Attributes:
        each: one by one; a pause among them where whoever names them has no more just now.
        count: how many; None where that is not known before the last.
        longest: letters of the longest name of an image, likewise.
        adapters: the names that are asked for, each once.
        mixed: whether each image has one of its own.
        notes: for a person.
    """

    each: Iterator[Question | Pause]
    count: int | None = None
    longest: int | None = None
    adapters: tuple[str | None, ...] = ()
    mixed: bool = False
    notes: tuple[str, ...] = ()

    def without_pauses(self) -> Iterator[Question]:
        """One by one, for whoever answers each before looking at the next."""
        return (one for one in self.each if not isinstance(one, Pause))

    def with_contents(self) -> Iterator[Question | Pause]:
        """One by one, what lies in Parquet files read; a pause where HELD bytes of it were given."""
        reader, given = Reader(), 0
        for one in self.each:
            if isinstance(one, Question) and isinstance(one.content, Cell):
                content = reader.read(one.content)
                given += len(content) if isinstance(content, bytes) else 0
                yield one._replace(content=content)
                if given > HELD:
                    given = 0
                    yield PAUSE
            else:
                yield one


def about(words: Sequence[str | os.PathLike[str]], stream: BinaryIO | None, adapter: str | None = None) -> Questions:
    """Files as they are named; of a folder all image files at any depth, sorted, or, where it has none, the rows of its
    Parquet files; of a list what it names; of a Parquet file its rows.

    Args:
        words: paths; a list ends in ``LIST`` and has a path a line, relative to the folder it lies in; ``STREAM`` is a
            list, relative to the working directory, that is read as it comes.
        stream: what is read there; None where it is closed.
        adapter: which is asked about all of them.

    Raises:
        UserError: a folder has no images, a list cannot be read or is empty, or it is to be read from a closed stream;
            a Parquet file cannot be read, or holds no images.
    """
    notes: list[str] = []
    parts: list[tuple[Path, Iterable[str | Pause | Named]]]
    parts = [(Path(), _streamed(stream)) if os.fspath(word) == STREAM else _named(word, notes) for word in words]
    listed = [(folder, names) for folder, names in parts if isinstance(names, list | Rows)]
    known = len(listed) == len(parts)
    each = (_question(folder, name, adapter) for folder, names in parts for name in names)
    return Questions(
        each,
        sum(len(names) for _, names in listed) if known else None,
        max((_longest(folder, names) for folder, names in listed), default=0) if known else None,
        (adapter,),
        notes=tuple(notes),
    )


def _question(folder: Path, name: str | Pause | Named, adapter: str | None) -> Question | Pause:
    if isinstance(name, Pause):
        return name
    if isinstance(name, Named):
        return Question(name.name, adapter, name.content)
    return Question(str(folder / name), adapter)


def _named(word: str | os.PathLike[str], notes: list[str]) -> tuple[Path, list[str] | Rows]:
    """A folder, and the paths from there; or rows of Parquet files."""
    path = given_path(word, "an image")
    if path.is_dir():
        found, tables = files_below(path, SUFFIXES), files_below(path, (SUFFIX,))
        if not found and not tables:
            raise UserError(f"{path}: a folder without images")
        if found and tables:
            notes.append(not_read(tables))
        return (path, found) if found else (Path(), rows_in([path / name for name in tables]))
    if path.suffix.lower() == SUFFIX and path.is_file():
        return Path(), rows_in([path])
    if path.suffix.lower() != LIST:
        return Path(), [str(path)]
    data = read_list(path)
    plain = encoding_of(data) == "utf-8-sig"
    text = data.decode("utf-8-sig", "surrogateescape") if plain else read_text(path)  # as os.fsdecode, without its mark
    if not (found := [line for line in map(_without_end, text.split("\n")) if line]):
        raise UserError(f"{path} lists nothing: it should have a path of an image in each line")
    return path.parent, found


def _longest(folder: Path, names: Sequence[str] | Rows) -> int:
    """Letters of the longest path, at most."""
    if isinstance(names, Rows):
        return names.longest
    return len(str(folder / "_")) - 1 + max(map(len, names))


def _streamed(stream: BinaryIO | None) -> Iterator[str | Pause]:
    """The lines of a list as they come, and a pause where the next one takes its time.

    Raises UserError at once where there is no stream.
    """
    if stream is None:
        raise UserError(f"{STREAM} is a list on standard input, and that is closed")
    return (line for line in _lines(stream) if line)


def _lines(stream: BinaryIO) -> Iterator[str | Pause]:
    begun: list[bytes] = []  # a line, in pieces
    while True:
        if not _ready(stream):
            yield PAUSE
        data = stream.read1(BLOCK)  # type: ignore[attr-defined]  # what is there, up to so much
        first, *others = data.split(b"\n")
        begun.append(first)
        if others or not data:
            lines = (b"".join(begun), *others[:-1])
            yield from (_without_end(os.fsdecode(line)) for line in lines)
            begun = others[-1:]
        if not data:
            return


def _ready(stream: BinaryIO) -> bool:
    """Whether reading would not wait, or not for long; so is one in memory, which has no file."""
    try:
        return bool(select.select([stream], [], [], SOON)[0])
    except (OSError, ValueError):
        return True


def _without_end(line: str) -> str:
    return line.removesuffix("\n").removesuffix("\r")


def in_table(path: Path) -> Questions:
    """The rows of a CSV file with the columns ``image`` and ``adapter``: paths relative to the folder it lies in.

    A cell of ``BARE`` in the place of an adapter's name asks the bare model. Raises UserError where the file cannot be
    read or is no such table, and at a row without an image.
    """
    cells = read_cells(path)
    places = {folded(name): at for at, name in reversed([*enumerate(cells.heading)])}
    image = next((places[name] for name in USUAL["image"] if name in places), None)
    adapter = places.get("adapter")
    if image is None or adapter is None:
        listed = ", ".join(printed(cells.heading[:MOST_LISTED])) or "none"
        raise UserError(f"{path} should have the columns image and adapter, and has: {listed}")
    images: list[str] = []
    adapters: list[str | None] = []
    shared: dict[str, str | None] = {}  # one text for all rows of a name
    for number, row in enumerate(cells.rows, 1):
        if not row[image].strip():
            raise UserError(f"{path}: row {number} names no image")
        name = row[adapter].strip()
        images.append(row[image].strip())
        adapters.append(shared.setdefault(name, None if name in BARE else name))
    root = path.parent
    each = (Question(str(root / name), own) for name, own in zip(images, adapters, strict=True))
    names = tuple(dict.fromkeys(shared.values()))
    return Questions(each, len(images), _longest(root, images), names, mixed=True, notes=cells.notes)

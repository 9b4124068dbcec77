"""Images that somebody asks about, as they are named: files, folders, lists, a table with an adapter for each."""

from __future__ import annotations

import os
import select
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

from mlx_peft.core.errors import UserError
from mlx_peft.core.paths import given_path
from mlx_peft.data.cells import read_cells
from mlx_peft.data.columns import USUAL
from mlx_peft.data.lists import encoding_of, printed, read_list, read_text
from mlx_peft.data.litter import files_below
from mlx_peft.data.names import folded
from mlx_peft.data.reading import SUFFIXES
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


class Question(NamedTuple):
    """An image's file, and which adapter is asked; None: there is one model, or the bare one is meant."""

    image: str
    adapter: str | None = None


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


def about(words: Sequence[str | os.PathLike[str]], stream: BinaryIO | None, adapter: str | None = None) -> Questions:
    """Files as they are named; of a folder all image files at any depth, sorted; of a list what it names.

    Args:
        words: paths; a list ends in ``LIST`` and has a path a line, relative to the folder it lies in; ``STREAM`` is a
            list, relative to the working directory, that is read as it comes.
        stream: what is read there; None where it is closed.
        adapter: which is asked about all of them.

    Raises:
        UserError: a folder has no images, a list cannot be read or is empty, or it is to be read from a closed stream.
    """
    parts: list[tuple[Path, Iterable[str | Pause]]]
    parts = [(Path(), _streamed(stream)) if os.fspath(word) == STREAM else _named(word) for word in words]
    listed = [(folder, names) for folder, names in parts if isinstance(names, list)]
    known = len(listed) == len(parts)
    each = (
        name if isinstance(name, Pause) else Question(str(folder / name), adapter)
        for folder, names in parts
        for name in names
    )
    return Questions(
        each,
        sum(len(names) for _, names in listed) if known else None,
        max((_longest(folder, names) for folder, names in listed), default=0) if known else None,
        (adapter,),
    )


def _named(word: str | os.PathLike[str]) -> tuple[Path, list[str]]:
    """A folder, and the paths from there."""
    path = given_path(word, "an image")
    if path.is_dir():
        found = files_below(path, SUFFIXES)
        if not found:
            raise UserError(f"{path}: a folder without images")
        return path, found
    if path.suffix.lower() != LIST:
        return Path(), [str(path)]
    data = read_list(path)
    plain = encoding_of(data) == "utf-8-sig"
    text = data.decode("utf-8-sig", "surrogateescape") if plain else read_text(path)  # as os.fsdecode, without its mark
    if not (found := [line for line in map(_without_end, text.split("\n")) if line]):
        raise UserError(f"{path} lists nothing: it should have a path of an image in each line")
    return path.parent, found


def _longest(folder: Path, names: Iterable[str]) -> int:
    """Letters of the longest path, at most."""
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

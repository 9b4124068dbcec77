"""Answers about images, told or written: a table, CSV or JSON lines, each as it comes; or one document at the end."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import typer

from mlx_peft.cli.common import echo, echo_json, unicode_out
from mlx_peft.core.errors import UserError, shortened
from mlx_peft.core.json_io import to_json
from mlx_peft.core.text import csv_cell, printable

Format = Literal["table", "csv", "jsonl"]
SUFFIXES: dict[str, Format] = {".txt": "table", ".csv": "csv", ".jsonl": "jsonl"}
"""What a file is, by the ending of its name."""

WIDEST = 80
"""A column of the table is made no wider than so many letters by a name; a longer one stands out in its own line."""
LONGEST = 1000
"""So many letters of a reason are told."""

Write = Callable[[str], object]
Result = Mapping[str, Any]


@dataclass(frozen=True)
class Told:
    """How answers are told.

    Attributes:
        line: an entry of an adapter's answer, in a line.
        columns: the keys of all entries.
        adapters: whether each image has an adapter of its own.
        width: letters of the longest name of an image; None where that is not known.
    """

    line: Callable[[Result, str | None], str]
    columns: Sequence[str]
    adapters: bool
    width: int | None


class Writer(Protocol):
    """Takes one answer after the other, in the form of ``artifacts.predict.answers``."""

    def add(self, result: Result) -> None: ...


class Table:
    """For a person: images that cannot be read are not in it."""

    def __init__(self, write: Write, told: Told, ascii: bool) -> None:
        self._write, self._told, self._width, self._named = write, told, min(told.width or 0, WIDEST), 0

    def add(self, result: Result) -> None:
        if "error" in result:
            return
        image, adapter = printable(result["image"]), result.get("adapter")
        self._width = max(self._width, min(len(image), WIDEST))
        self._named = max(self._named, min(len(printable(adapter or "")), WIDEST))
        for rank, entry in enumerate(result["predictions"]):
            cells = [f"{'' if rank else image:<{self._width}}"]
            if self._told.adapters:
                cells.append(f"{'' if rank else printable(adapter or ''):<{self._named}}")
            self._write("  ".join([*cells, self._told.line(entry, adapter)]))


class Csv:
    """A row for each entry, and one for each image that cannot be read, with the reason."""

    def __init__(self, write: Write, told: Told, ascii: bool) -> None:
        self._write, self._columns = write, told.columns
        self._row(["image", "adapter", "rank", *told.columns, "error"])

    def add(self, result: Result) -> None:
        head = [csv_cell(result["image"]), csv_cell(result.get("adapter") or "")]
        if "error" in result:
            self._row([*head, "", *[""] * len(self._columns), csv_cell(result["error"])])
            return
        for rank, entry in enumerate(result["predictions"], 1):
            cells = [csv_cell(str(entry[name])) if name in entry else "" for name in self._columns]
            self._row([*head, str(rank), *cells, ""])

    def _row(self, cells: Sequence[str]) -> None:
        line = io.StringIO()
        csv.writer(line, lineterminator="").writerow(cells)
        self._write(line.getvalue())


class JsonLines:
    """A document for each image, in a line of its own."""

    def __init__(self, write: Write, told: Told, ascii: bool) -> None:
        self._write, self._ascii = write, ascii

    def add(self, result: Result) -> None:
        self._write(to_json(result, indent=None, ascii=self._ascii))


class Document:
    """One JSON document of all, on standard output."""

    def __init__(self) -> None:
        self._results: list[Result] = []

    def add(self, result: Result) -> None:
        self._results.append(result)

    def end(self) -> None:
        echo_json(self._results)


WRITERS: dict[Format, Callable[[Write, Told, bool], Writer]] = {"table": Table, "csv": Csv, "jsonl": JsonLines}


def printed(format: Format, told: Told) -> Writer:
    """Answers on standard output."""
    return WRITERS[format](lambda text: typer.echo(f"{text}\n", nl=False), told, not unicode_out())


@contextmanager
def into(path: Path, format: Format, told: Told) -> Iterator[Writer]:
    """Answers in a file, which gets its place once the block is done; where that raises, the file is as it was."""
    from mlx_peft.core.writing import move, staging  # which loads safetensors

    with staging(path) as folder:
        staged = folder / path.name
        with open(staged, "x", encoding="utf-8", newline="") as file:
            yield WRITERS[format](lambda text: file.write(f"{text}\n"), told, False)
        move(staged, path)


def format_of(format: Format | None, out: Path | None) -> Format:
    """What is asked for, or what a file's name says.

    Raises UserError where it says nothing, and where a file is there whose name says that it is something else.
    """
    if out is None:
        return format or "table"
    named = SUFFIXES.get(out.suffix.lower())
    if format is None and named is None:
        raise UserError(f"--out: {out} should end in {', '.join(SUFFIXES)}; or say what it is to be: --format")
    form: Format = format or named or "table"
    if named != form and out.exists():
        raise UserError(f"--out: {out} is there, and by its name it is no {form}: name another file, or remove it")
    return form


class LeftOut:
    """The images that cannot be read, named on standard error once one could: else the command's own message does.

    Attributes:
        found: those, with the reasons; read: how many others there were.
    """

    def __init__(self) -> None:
        self.found: list[Result] = []
        self.read = 0
        self._said = 0

    def add(self, result: Result) -> None:
        """An answer, in the form of ``artifacts.predict.answers``."""
        if "error" in result:
            self.found.append(result)
        else:
            self.read += 1
        while self.read and self._said < len(self.found):
            echo(f"left out, unreadable: {shortened(self.found[self._said]['error'], LONGEST)}", err=True)
            self._said += 1

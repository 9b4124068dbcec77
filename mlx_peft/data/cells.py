"""The cells of a table in a text file: a heading, and rows that are as long."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mlx_peft.core.errors import UserError
from mlx_peft.core.text import counted
from mlx_peft.data.lists import read_text

MAX_ROWS = 10_000_000
"""A table has at most so many rows. (Of their letters there are at most lists.MAX_TEXT.)"""

_SEP = re.compile(r"sep=([,;|:\t])\s*\Z", re.IGNORECASE)
_LINE = re.compile(r"[^\r\n]*(?:\r\n?|\n)|[^\r\n]+")


@dataclass(frozen=True)
class Cells:
    """A table that is being read.

    Attributes:
        heading: the names of its columns, no two alike.
        rows: from the first; empty lines are passed over. Raises UserError at one of another length, or that is none;
            where there are too many, and at the end, where there was none.
        notes: about how it is read, for a person.
    """

    heading: list[str]
    rows: Iterator[list[str]]
    notes: tuple[str, ...]


def read_cells(path: Path) -> Cells:
    """A file whose cells are parted by commas (``.tsv``: by tabs), or by what its heading has instead.

    Raises UserError where it cannot be read, has no heading, or two columns of the same name.
    """
    text = read_text(path)
    mark, begin = _mark(path, text)
    rows = _rows(path, csv.reader(_lines(text, begin), delimiter=mark, strict=True))
    heading = [cell.strip() for cell in next(rows, [])]
    if len(set(heading)) != len(heading):
        raise UserError(f"{path}: two columns have the same name")
    notes = (f"{path.name}: read with {mark!r} between its cells",) if mark != _usual_mark(path) else ()
    return Cells(heading, _as_long(path, rows, len(heading)), notes)


def _rows(path: Path, reader: Iterator[list[str]]) -> Iterator[list[str]]:
    try:
        yield from reader
    except csv.Error as error:
        line = reader.line_num  # type: ignore[attr-defined]
        raise UserError(f"{path}: line {line} is no line of a table ({error})") from error


def _as_long(path: Path, rows: Iterator[list[str]], length: int) -> Iterator[list[str]]:
    """The rows that are not empty, each as long as the heading."""
    number = 0
    for number, row in enumerate(filter(None, rows), 1):
        if len(row) != length:
            raise UserError(f"{path}: row {number} has {counted(len(row), 'cell')}, not {length} as the heading")
        if number > MAX_ROWS:
            raise UserError(f"{path} has more than {MAX_ROWS:,} rows, the most that are read of a table")
        yield row
    if not number:
        raise UserError(f"{path} lists nothing")


def _usual_mark(path: Path) -> str:
    return "\t" if path.suffix.lower() == ".tsv" else ","


def _mark(path: Path, text: str) -> tuple[str, int]:
    """What stands between the cells: the usual mark, or another where the heading has that one only, or where a first
    line ``sep=;`` (a spreadsheet's) says so. And where the heading begins."""
    first = next(_lines(text, 0), "")
    if stated := _SEP.match(first):
        return stated[1], len(first)
    unquoted = re.sub(r'"[^"]*"', "", first)
    return next((mark for mark in (_usual_mark(path), ",", ";", "\t", "|") if mark in unquoted), _usual_mark(path)), 0


def _lines(text: str, begin: int) -> Iterator[str]:
    """A text's lines with their ends, without a second copy of it."""
    return (line.group() for line in _LINE.finditer(text, begin))

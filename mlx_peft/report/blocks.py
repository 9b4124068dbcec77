"""Pieces of Markdown that hold what stands elsewhere, names of others among it: shown as it is, and never obeyed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mlx_peft.core.text import printable


@dataclass(frozen=True)
class Columns:
    """A table's columns. Cells are Markdown already: a name from elsewhere goes through ``markdown`` or ``code``.

    Attributes:
        headings: one for each column.
        numeric: the headings of the columns that are set to the right.
    """

    headings: Sequence[str]
    numeric: Sequence[str] = ()

    def head(self, widths: Sequence[int] | None = None) -> str:
        """The two lines above the rows, which ``row`` may add one by one."""
        widths = widths or [0] * len(self.headings)
        rule = [
            "-" * (max(3, width) - 1) + (":" if heading in self.numeric else "-")
            for heading, width in zip(self.headings, widths, strict=True)
        ]
        return f"{self._padded(self.headings, widths)}\n{row(rule)}"

    def table(self, rows: Iterable[Sequence[str]]) -> str:
        """The whole table."""
        return "\n".join([self.head(), *map(row, rows)])

    def aligned(self, rows: Iterable[Sequence[str]]) -> str:
        """The whole table, its cells padded for whoever reads the source."""
        rows = list(rows)
        widths = [max(3, *map(len, cells)) for cells in zip(self.headings, *rows, strict=True)]
        return "\n".join([self.head(widths), *(self._padded(cells, widths) for cells in rows)])

    def _padded(self, cells: Sequence[str], widths: Sequence[int]) -> str:
        sides = [">" if heading in self.numeric else "<" for heading in self.headings]
        return row([f"{cell:{side}{width}}" for cell, side, width in zip(cells, sides, widths, strict=True)])


def row(cells: Iterable[str]) -> str:
    """One line of a table."""
    return f"| {' | '.join(cells)} |"


def code(text: object) -> str:
    """A text in a line of Markdown as it is, in a table too, whatever is in it."""
    shown = printable(str(text)).replace("|", "\\|")
    fence = "`" * (1 + max(map(len, re.findall("`+", shown)), default=0))
    return f"{fence} {shown} {fence}" if "`" in shown else f"`{shown}`"


def fenced(language: str, text: str) -> str:
    """A block of text as it is; no line of it ends the block."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text.strip()}\n{fence}"

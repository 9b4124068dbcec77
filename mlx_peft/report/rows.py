"""A table before it is drawn, and drawn: on a terminal, as Markdown, as LaTeX."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from mlx_peft.core import text
from mlx_peft.core.text import printable
from mlx_peft.report.blocks import Columns

RAISED = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class Cell:
    """What stands in a cell, as plain text.

    Attributes:
        bold: it is the best, or not significantly worse.
        marks: the numbers of the footnotes that say more, from 1.
    """

    text: str
    bold: bool = False
    marks: tuple[int, ...] = ()

    @property
    def raised(self) -> str:
        """``¹ ²``: its marks, where letters are all there is."""
        return " ".join(str(mark).translate(RAISED) for mark in self.marks)


@dataclass(frozen=True)
class Rows:
    """A table: what all rows have in common, the headings, the cells, and what is said below.

    Attributes:
        numeric: the headings of the columns that are set to the right.
        below: how to read it, a sentence each without its end.
        notes: the footnotes, of which the first has the mark 1.
        printed: the headings of the columns that a paper's table has.
    """

    above: str
    headings: list[str]
    numeric: list[str]
    cells: list[list[Cell]]
    below: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    printed: tuple[str, ...] = ()


def plain(cells: Iterable[Iterable[str]]) -> list[list[Cell]]:
    """Rows of texts of which none is marked."""
    return [[Cell(one) for one in row] for row in cells]


def drawn(rows: Rows) -> Table:
    """A table for a terminal, which obeys nothing in a name: neither escapes nor rich's markup."""
    below = [printable(line) for line in (*rows.below, *_numbered(rows.notes))]
    view = Table(
        box=SIMPLE_HEAD,
        title=Text(printable(rows.above)) if rows.above else None,
        title_justify="left",
        caption=Text("\n".join(below)) if below else None,
        caption_justify="left",
    )
    for heading in rows.headings:
        view.add_column(heading, justify="right" if heading in rows.numeric else "left", overflow="fold")
    for cells in rows.cells:
        view.add_row(*(Text(printable(cell.text) + cell.raised, style="bold" * cell.bold) for cell in cells))
    return view


def markdown(rows: Rows) -> str:
    """A table in Markdown, its columns aligned for whoever reads the source, between what is said of it."""
    table = Columns(rows.headings, rows.numeric).aligned([[_marked(cell) for cell in row] for row in rows.cells])
    said = [f"{text.markdown(line)}." for line in rows.below]
    notes = ["\\\n".join(text.markdown(line) for line in _numbered(rows.notes))] if rows.notes else []
    return "\n\n".join([*([f"{text.markdown(rows.above)}."] if rows.above else []), table, *said, *notes])


def _marked(cell: Cell) -> str:
    shown = text.markdown(cell.text)
    return (f"**{shown}**" if cell.bold else shown) + cell.raised


def _numbered(notes: Sequence[str]) -> list[str]:
    return [f"{str(number).translate(RAISED)} {note}" for number, note in enumerate(notes, start=1)]


_TEX = {
    **{sign: f"\\{sign}" for sign in "{}$&#%_"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
    "–": "--",
    "×": r"$\times$",
    "…": r"\ldots{}",
    "−": "$-$",
    "[": "{[}",  # which \\ and \midrule before it would take for the beginning of a length
    "*": "{*}",  # and \\ for a part of itself
}
_TEX_SIGNS = re.compile("|".join(map(re.escape, _TEX)))


def tex(line: str) -> str:
    """A text as LaTeX sets it, with nothing in it obeyed."""
    return _TEX_SIGNS.sub(lambda match: _TEX[match[0]], printable(line))


PREAMBLE = "% needs \\usepackage{booktabs} and \\usepackage{graphicx}"
NARROW = 10
"""A heading of a paper's table has so many letters in a line, but for a longer word."""
LONG = 40
"""The lines of a cell of more letters are broken."""


def latex(rows: Rows) -> str:
    """A table for a paper: the columns that are printed, rules of the package booktabs, what is said of it below.

    One that is wider than the text is scaled to its width.
    """
    kept = [at for at, heading in enumerate(rows.headings) if not rows.printed or heading in rows.printed]
    sides = "".join(_side(rows, at) for at in kept)
    lines = [" & ".join(_set(row[at]) for at in kept) + r" \\" for row in rows.cells]
    said = [f"{tex(line)}." for line in rows.below]
    said += [f"$^{{{number}}}$ {tex(note)}." for number, note in enumerate(rows.notes, start=1)]
    return "\n".join([
        r"\begin{table}",
        r"  \centering",
        *([f"  \\caption{{{tex(rows.above)}.}}"] if rows.above else []),
        r"  \resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
        f"  \\begin{{tabular}}{{{sides}}}",
        r"    \toprule",
        "    " + " & ".join(_heading(rows.headings[at], _side(rows, at)[0]) for at in kept) + r" \\",
        r"    \midrule",
        *(f"    {line}" for line in lines),
        r"    \bottomrule",
        r"  \end{tabular}}",
        *([r"", r"  \smallskip", r"  \parbox{\linewidth}{\footnotesize " + r" \\ ".join(said) + "}"] if said else []),
        r"\end{table}",
    ])  # fmt: skip


def _side(rows: Rows, at: int) -> str:
    """How a column is set."""
    if rows.headings[at] in rows.numeric:
        return "r"
    return r"p{0.6\linewidth}" if any(len(row[at].text) > LONG for row in rows.cells) else "l"


def _heading(heading: str, side: str) -> str:
    """Its lines under one another."""
    lines = [tex(line) for line in textwrap.wrap(heading, NARROW, break_long_words=False)]
    if len(lines) < 2 or side == "p":
        return tex(heading)
    return rf"\begin{{tabular}}[b]{{@{{}}{side}@{{}}}}" + r" \\ ".join(lines) + r"\end{tabular}"


def _set(cell: Cell) -> str:
    shown = f"\\textbf{{{tex(cell.text)}}}" if cell.bold else tex(cell.text)
    return shown + (f"$^{{{','.join(map(str, cell.marks))}}}$" if cell.marks else "")

"""Pieces of Markdown that hold what stands elsewhere, names of others among it: shown as it is, and never obeyed."""

from __future__ import annotations

import re
from collections.abc import Iterable

from mlx_peft.core.text import printable


def table(rows: Iterable[Iterable[str]]) -> str:
    """A table, whose cells are Markdown already: a name from elsewhere goes through ``markdown`` or ``code``."""
    head, *body = [list(row) for row in rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *body])


def code(text: object) -> str:
    """A text in a line of Markdown as it is, in a table too, whatever is in it."""
    shown = printable(str(text)).replace("|", "\\|")
    fence = "`" * (1 + max(map(len, re.findall("`+", shown)), default=0))
    return f"{fence} {shown} {fence}" if "`" in shown else f"`{shown}`"


def fenced(language: str, text: str) -> str:
    """A block of text as it is; no line of it ends the block."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text.strip()}\n{fence}"

"""A report on disk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mlx_peft.core.errors import UserError
from mlx_peft.report import curves, tables
from mlx_peft.report.gather import Run


def write(runs: Sequence[Run], out: Path) -> list[Path]:
    """Writes ``table.md``, ``table.csv`` and, where a run was validated, ``curves.png``; returns what was written."""
    markdown, table, figure = out / "table.md", out / "table.csv", out / "curves.png"
    try:
        out.mkdir(parents=True, exist_ok=True)
        markdown.write_text(tables.markdown(runs), "utf-8")
        table.write_text(tables.to_csv(runs), "utf-8")
        drawn = curves.draw(runs, figure)
    except OSError as error:
        raise UserError(f"{error.filename or out}: {error.strerror}") from None
    return [markdown, table, *([figure] if drawn else [])]

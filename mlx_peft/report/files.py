"""A report on disk."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from mlx_peft.core.writing import disk_errors, write_together
from mlx_peft.report import forked, tables
from mlx_peft.report.figures import drawings
from mlx_peft.report.figures.drawn import drawn
from mlx_peft.report.gather import Gathered
from mlx_peft.report.study import Study
from mlx_peft.report.web.page import page
from mlx_peft.report.web.pictures import picture

FIGURES = "figures"
"""The folder of the figures, inside the report's."""


def write(found: Gathered, study: Study, out: Path, title: str = "Report") -> list[Path]:
    """Writes the page, ``report.html``, the tables (``table.md``, ``table.csv``, ``means.csv``, ``table.tex``), and the
    figures of what there is.

    Of each figure there are ``figures/NAME-single.pdf`` and ``-double.pdf``, as wide as one column of a paper and as
    two, and the same as PNG. Returns what was written.

    Raises UserError where they cannot be written; then none of them is changed.
    """
    shown = drawings(study)
    figures = drawn(shown, forked.processes(study.runs))
    seen = forked.each(partial(picture, files=figures), shown, forked.processes(study.runs))
    files = {
        out / "report.html": page(title, found, study, seen).encode(),
        out / "table.md": tables.markdown(study.runs, found.damaged, study).encode(),
        out / "table.csv": tables.to_csv(study.runs).encode(),
        out / "means.csv": tables.means_csv(study).encode(),
        out / "table.tex": tables.latex(study).encode(),
    }
    files |= {out / FIGURES / name: content for name, content in figures.items()}
    with disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        if figures:
            (out / FIGURES).mkdir(exist_ok=True)
    write_together(files)
    return list(files)

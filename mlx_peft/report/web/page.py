"""A report as one page of HTML: nothing in it asks for a network, and no name in it is obeyed."""

from __future__ import annotations

import hashlib
from base64 import b64encode
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_peft.core.text import counted, printable
from mlx_peft.report import tables
from mlx_peft.report.boards import Board
from mlx_peft.report.gather import Gathered
from mlx_peft.report.rows import Rows
from mlx_peft.report.study import Study
from mlx_peft.report.web.details import details
from mlx_peft.report.web.pictures import Picture

if TYPE_CHECKING:
    from jinja2 import Environment

TEMPLATES = Path(__file__).parent / "templates"
CHOICES = ("method", "tokens", "model", "data set", "backend", "seed", "bits")
"""Columns of the runs' table by whose values it can be filtered."""
MOST_CHOICES = 60
"""A column with more values is filtered by words alone."""


@cache
def _environment() -> Environment:
    """Jinja, where every text is printable and escaped, and what is not there is an error."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    return Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
    )


def _shown(value: Any) -> Any:
    """A text without what is not seen or moves what is; markup of ours, which is a text too, as it is."""
    return printable(value) if type(value) is str else value


def page(title: str, found: Gathered, study: Study, pictures: Sequence[Picture]) -> str:
    """The page.

    Args:
        title: what it is about.
        found: what was left out is named at the top.
        pictures: the figures.
    """
    from markupsafe import Markup

    style, script = ((TEMPLATES / f"report.{ending}").read_text("utf-8") for ending in ("css", "js"))
    numbers = {run.name: number for number, run in enumerate(study.runs)}
    each = tables.each(study.runs)
    runs = {"rows": each, "runs": [*range(len(study.runs))]}
    return _environment().get_template("report.html.j2").render(
        title=title,
        policy=policy(style, script),
        style=Markup(style),
        script=Markup(script),
        facts=_facts(study),
        left_out=_left_out(found),
        compared=_compared(study, numbers),
        figures=pictures,
        runs=runs,
        choices=_choices(each),
        data=Markup(details(study.runs)),
    )  # fmt: skip


def policy(style: str, script: str) -> str:
    """What a browser may do with the page: show these styles, run this script, and fetch nothing."""
    style_hash, script_hash = (b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (style, script))
    return (
        f"default-src 'none'; img-src data:; style-src 'sha256-{style_hash}'; script-src 'sha256-{script_hash}'; "
        "base-uri 'none'; form-action 'none'"
    )


def _facts(study: Study) -> str:
    seeds = {run.value("seed") for run in study.runs} - {None}
    parts = (
        counted(len(study.runs), "run"),
        counted(len(study.board.cells), "configuration") if study.board.cells else "",
        counted(len(study.board.columns), "data set") if study.board.columns else "",
        counted(len(seeds), "seed") if seeds else "",
    )
    return ", ".join(filter(None, parts))


def _left_out(found: Gathered) -> list[str]:
    damaged = [f"damaged: {one.name}: {one.reason}" for one in found.damaged]
    return damaged + [f"not finished: {name}" for name in found.unfinished]


def _compared(study: Study, numbers: Mapping[str, int]) -> list[dict[str, Any]]:
    """The tables of what is compared, each row with the numbers of its runs."""
    board, several = study.board, len(study.board.columns) > 1
    found = []
    for at, rows in enumerate(tables.means(study)):
        column = None if several and at == 0 else at - several
        title = "Over the data sets" if column is None else f"On {board.columns[column].dataset}"
        runs = [_runs_of(board, cells[0].text, column, numbers) for cells in rows.cells]
        found.append({"id": f"compared-{at}", "title": title, "rows": rows, "runs": runs})
    for rows in tables.choices(study):
        found.append({"id": "chosen", "title": "Chosen", "rows": rows, "runs": [None] * len(rows.cells)})
    return found


def _runs_of(board: Board, row: str, column: int | None, numbers: Mapping[str, int]) -> list[int]:
    columns = range(len(board.columns)) if column is None else (column,)
    groups = [board.cells[row, at] for at in columns if (row, at) in board.cells]
    return [numbers[run.name] for group in groups for run in group.runs]


def _choices(each: Rows) -> list[dict[str, Any]]:
    found = []
    for at, heading in enumerate(each.headings):
        values = sorted({printable(cells[at].text) for cells in each.cells})
        if heading in CHOICES and 1 < len(values) <= MOST_CHOICES:
            found.append({"heading": heading, "column": at, "options": values})
    return found

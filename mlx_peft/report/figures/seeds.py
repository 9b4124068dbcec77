"""Every seed as a dot: how far apart methods are, beside how far apart seeds are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlx_peft.report.boards import Board
from mlx_peft.report.drawing import COLOURS, fitted
from mlx_peft.report.figures.layout import POINTS, SMALL, Drawing, across, panels, titled
from mlx_peft.report.study import Study

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ROWS = 40
"""The best of more rows are drawn."""
MOST_SETS = 20
LINE, LABEL = 0.155, 1.6
"""Inches of a row, and of the longest name beside it."""


def seeds(study: Study) -> Drawing | None:
    """None where nothing has two seeds."""
    board = study.board
    if not any(len(group.runs) > 1 for group in board.cells.values()):
        return None
    caption = (
        "Each dot is a seed, the vertical line the mean, the bar Student's 95 % interval of the mean, cut where the "
        "panel ends. Filled marks are those in bold: the best and all that does not differ significantly from it."
    )
    return Drawing("seeds", caption, lambda width: _draw(study, width))


def _order(board: Board) -> list[str]:
    """By the mean over what there is, the best first."""

    def height(row: str) -> float:
        scores = [score.mean for at in range(len(board.columns)) if (score := board.score(row, at))]
        return -sum(scores) / len(scores) if scores else 1.0

    return sorted((row for row in board.rows if height(row) <= 0), key=height)[:ROWS]


def _draw(study: Study, width: float) -> Figure:
    board = study.board
    rows, sets = _order(board), range(min(len(board.columns), MOST_SETS))
    figure, grid = panels(len(sets), width, 0.55 + LINE * len(rows), share_y=True)
    for at, axes in zip(sets, grid, strict=True):
        _panel(axes, study, at, rows)
        axes.set_xlabel(board.columns[at].heading, fontsize=POINTS)
        if len(board.columns) > 1:
            titled(axes, board.columns[at].dataset, width / across(len(sets), width) - 0.5)
    for axes in grid:
        axes.set_yticks(range(len(rows)), [fitted(row, min(LABEL, width / 3), SMALL) for row in rows], parse_math=False)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.tick_params(axis="y", length=0)
    if len(board.rows) > len(rows):
        figure.suptitle(f"the best {len(rows)} of {len(board.rows):,}", fontsize=SMALL)
    return figure


def _panel(axes: Axes, study: Study, at: int, rows: list[str]) -> None:
    from matplotlib.ticker import MaxNLocator

    board, verdict = study.board, study.verdicts.get(at)
    values: list[float] = []
    for place, row in enumerate(rows):
        group, score = board.cells.get((row, at)), board.score(row, at)
        if group is None or score is None:
            continue
        own = [100 * value for run in group.runs if isinstance(value := run.value(board.columns[at].key), int | float)]
        best = verdict is not None and row in verdict.best
        if score.interval is not None:
            axes.plot([100 * end for end in score.interval], [place, place], color="#c4c4c4", linewidth=3, zorder=1)
        axes.plot([100 * score.mean] * 2, [place - 0.32, place + 0.32], color="black", linewidth=1.1, zorder=2)
        face = COLOURS[0] if best else "white"
        axes.plot(
            *(own, [place] * len(own)), "o", markersize=3.2, color=COLOURS[0], markerfacecolor=face, zorder=3,
            markeredgewidth=0.7,
        )  # fmt: skip
        values += own
    room = 0.12 * (max(values) - min(values)) or 1.0
    axes.set_xlim(max(-1, min(values) - room), min(101, max(values) + room))  # an interval of two seeds may be wider
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.ticklabel_format(axis="x", useOffset=False)

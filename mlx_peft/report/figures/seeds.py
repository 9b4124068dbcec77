"""Every seed as a dot: how far apart methods are, beside how far apart seeds are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlx_peft.report.boards import Board
from mlx_peft.report.drawing import COLOURS, fitted
from mlx_peft.report.figures.layout import POINTS, ROUND, SMALL, Drawing, across, panels, titled
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
    return Drawing("seeds", caption, lambda width: _draw(study, width), len(board.columns) > 1)


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
    names = [fitted(row, min(LABEL, width / 3), SMALL) for row in rows]
    for axes in grid:
        axes.set_yticks(range(len(rows)), names, parse_math=False)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.tick_params(axis="y", length=0)
    measured = sum(any(board.score(row, at) for at in range(len(board.columns))) for row in board.rows)
    if measured > len(rows):
        figure.suptitle(f"the best {len(rows)} of {measured:,}", fontsize=SMALL)
    return figure


def _panel(axes: Axes, study: Study, at: int, rows: list[str]) -> None:
    from matplotlib.ticker import MaxNLocator

    board, verdict = study.board, study.verdicts.get(at)
    means: list[tuple[float, int]] = []
    intervals: list[tuple[int, float, float]] = []
    dots: dict[bool, list[tuple[float, int]]] = {True: [], False: []}
    for place, row in enumerate(rows):
        group, score = board.cells.get((row, at)), board.score(row, at)
        if group is None or score is None:
            continue
        own = [100 * value for run in group.runs if isinstance(value := run.value(board.columns[at].key), int | float)]
        dots[verdict is not None and row in verdict.best] += [(value, place) for value in own]
        means.append((100 * score.mean, place))
        if score.interval is not None:
            intervals.append((place, 100 * score.interval[0], 100 * score.interval[1]))
    where = [place for place, _, _ in intervals]
    axes.hlines(where, [low for _, low, _ in intervals], [high for *_, high in intervals], color="#c4c4c4", linewidth=3)
    low, high = ([place + sign * 0.32 for _, place in means] for sign in (-1, 1))
    axes.vlines([mean for mean, _ in means], low, high, color="black", linewidth=1.1, zorder=2)
    for best, some in dots.items():
        axes.plot(
            [value for value, _ in some],
            [place for _, place in some],
            "o",
            color=COLOURS[0],
            markerfacecolor=COLOURS[0] if best else "white",
            markeredgewidth=0.7,
            markersize=3.2,
            zorder=3,
        )
    values = [value for some in dots.values() for value, _ in some]
    if not values:
        return
    room = 0.12 * (max(values) - min(values)) or 1.0
    axes.set_xlim(max(-1, min(values) - room), min(101, max(values) + room))  # an interval of two seeds may be wider
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=ROUND))
    axes.ticklabel_format(axis="x", useOffset=False)

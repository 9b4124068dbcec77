"""What accuracy costs: against trained parameters, memory and time, with what nothing else beats on both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import TYPE_CHECKING

from mlx_peft.core.text import counted
from mlx_peft.report.boards import Board
from mlx_peft.report.drawing import fitted
from mlx_peft.report.figures.layout import (
    GREY,
    MARKED,
    POINTS,
    ROUND,
    SIZES,
    Drawing,
    across,
    label_rows,
    legend,
    legend_lines,
    look,
    panels,
    shares,
    titled,
)
from mlx_peft.report.figures.named import Mark, named
from mlx_peft.report.groups import Group, Spread, spread
from mlx_peft.report.significance import EQUAL
from mlx_peft.report.study import Study

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FEW = 8
"""Of more configurations on one set the names need the width of two columns."""
MOST_SETS = 6
"""Of more data sets one panel has the means over all of them."""
HEIGHT = 2.3
FRONT = "#3a3a3a"
WIDE = 8
"""A cost is drawn on a logarithmic scale where the largest is so many times the smallest."""


@dataclass(frozen=True)
class Cost:
    """What something costs: where it stands in a result, one of several places, and how it is told."""

    name: str
    keys: tuple[str, ...]
    axis: tuple[str, ...]
    scale: float
    caption: str


COSTS = (
    Cost(
        "parameters",
        ("parameters.trainable",),
        ("trained parameters",),
        1,
        "against trained parameters, those of the head included",
    ),
    Cost(
        "memory",
        ("memory.process_bytes", "memory.arrays_bytes"),
        ("peak of process (MB)", "peak of arrays (MB)"),
        1e-6,
        "against the peak of memory in training",
    ),
    Cost("time", ("time.epoch_seconds",), ("seconds an epoch",), 1, "against the time of an epoch"),
)


@dataclass(frozen=True)
class Point:
    """A configuration: its row's number, what it costs, and what it is worth, in per cent, with its interval."""

    row: int
    cost: float
    score: float
    interval: tuple[float, float] | None = None


def tradeoffs(study: Study) -> list[Drawing]:
    """A figure for each cost that two configurations say, and in which they differ."""
    found = []
    for cost in COSTS:
        key = max(cost.keys, key=lambda key: sum(_cost(group, key) is not None for group in study.board.cells.values()))
        sets = _points(study.board, key, cost.scale)
        if any(len({point.cost for point in points}) > 1 for points in sets.values()):
            caption = (
                f"Accuracy {cost.caption}. The line joins what nothing else beats at once in cost and in accuracy; "
                "bars are Student's 95 % interval of the mean over seeds, cut where a panel ends."
            )
            axis = cost.axis[cost.keys.index(key)]
            wide = len(sets) > 1 or any(len(points) > FEW for points in sets.values())
            found.append(Drawing(cost.name, caption, partial(_draw, study.board, sets, axis), wide))
    return found


def _cost(group: Group, key: str) -> float | None:
    known = group.spread(key)
    return None if known is None else known.mean


def _points(board: Board, key: str, scale: float) -> dict[str, list[Point]]:
    """The points of each panel, by its name: a data set's, or the means over all."""
    found: dict[str, list[Point]] = {}
    numbers = {row: at for at, row in enumerate(board.rows)}
    if len(board.columns) > MOST_SETS:
        for row in board.complete():
            cells = [(board.cells[row, at], board.score(row, at)) for at in range(len(board.columns))]
            costs = [_cost(group, key) for group, _ in cells]
            known = [cost for cost in costs if cost is not None]
            if len(known) == len(costs):
                score = spread(one.mean for _, one in cells if one is not None)
                found.setdefault(f"mean of {len(costs)} data sets", []).append(
                    _point(numbers[row], fmean(known) * scale, score, seeds=False)
                )
        return found
    for (row, at), group in board.cells.items():
        cost = _cost(group, key)
        if cost is not None and cost > 0:
            there = board.columns[at]
            found.setdefault(there.dataset, []).append(_point(numbers[row], cost * scale, board.score(row, at)))
    return found


def _point(row: int, cost: float, score: Spread | None, *, seeds: bool = True) -> Point:
    """``seeds``: whether the spread is one of seeds, which has an interval."""
    assert score is not None
    ends = score.interval if seeds else None
    return Point(row, cost, 100 * score.mean, None if ends is None else (100 * ends[0], 100 * ends[1]))


def front(points: Sequence[Point]) -> list[Point]:
    """Those that no other one beats: none costs as little and is worth more, or as much and costs less; by cost."""
    found: list[Point] = []
    for point in sorted(points, key=lambda point: (point.cost, -point.score)):
        if not found or point.score > found[-1].score + 100 * EQUAL:
            found.append(point)
    return found


def _draw(board: Board, sets: Mapping[str, Sequence[Point]], axis: str, width: float) -> Figure:
    """Of one set with the names beside the marks, where the figure is wide and they have room; else with a legend."""
    if len(sets) == 1 and width > SIZES["single"]:
        (points,) = sets.values()
        if (alone := _named(board, points, axis, width)) is not None:
            return alone
    best = {point.row for points in sets.values() for point in front(points)}
    shown = {point.row for points in sets.values() for point in points}
    told = sorted(shown if len(shown) <= MARKED else best)[:MARKED]
    looks = {row: number for number, row in enumerate(told)}
    names = [board.rows[row] for row in told]
    _, below = legend_lines(names, width)
    figure, grid = panels(len(sets), width, HEIGHT, below)
    for axes, (dataset, points) in zip(grid, sets.items(), strict=True):
        _panel(axes, points, looks)
        if len(sets) > 1 or len(board.columns) > 1:
            titled(axes, dataset, width / across(len(sets), width) - 0.5)
        axes.set_xlabel(fitted(axis, width / across(len(sets), width) - 0.4, POINTS), fontsize=POINTS)
    label_rows(figure, " or ".join(dict.fromkeys(one.heading for one in board.columns)), below)
    legend(figure, names, width)
    return figure


def _named(board: Board, points: Sequence[Point], axis: str, width: float) -> Figure | None:
    best = front(points)
    marks = [
        Mark(board.rows[point.row], point.cost, point.score, point.interval, point in best)
        for point in sorted(points, key=lambda point: point.row)
    ]
    figure = named(marks, axis, board.columns[0].heading, _title(board), width, log=_is_wide(points))
    if figure is not None and _is_wide(points):
        costs = [point.cost for point in points]
        _few_decades(figure.axes[0], max(costs) / min(costs))
    return figure


def _title(board: Board) -> str:
    """``cifar10, vit_small_patch14_dinov2, means of 3 seeds``; of several sets or models less."""
    groups = [*board.cells.values()]
    models = {str(group.runs[0].value("model")) for group in groups}
    counts = sorted({len(group.runs) for group in groups})
    seeds = counted(counts[-1], "seed") if len(counts) == 1 else f"{counts[0]} to {counts[-1]} seeds"
    images = board.columns[0].dataset if len(board.columns) == 1 else "means over data sets"
    return ", ".join(
        [images, *(models if len(models) == 1 else ()), *([f"means of {seeds}"] if counts[-1] > 1 else [])]
    )


def _is_wide(points: Sequence[Point]) -> bool:
    costs = [point.cost for point in points]
    return min(costs) > 0 and max(costs) > WIDE * min(costs)


def _panel(axes: Axes, points: Sequence[Point], looks: Mapping[int, int]) -> None:
    from matplotlib.ticker import MaxNLocator

    costs = [point.cost for point in points]
    if _is_wide(points):
        axes.set_xscale("log")
        _few_decades(axes, max(costs) / min(costs))
    else:
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=ROUND))
    axes.margins(0.08)
    best = front(points)
    axes.plot(
        [point.cost for point in best],
        [point.score for point in best],
        color=FRONT,
        linewidth=1.2,
        drawstyle="steps-post",
        zorder=2.5,
    )
    spread = [point for point in points if point.interval and (len(points) <= MARKED or point.row in looks)]
    low, high = ([point.interval[end] for point in spread if point.interval] for end in (0, 1))
    axes.vlines([point.cost for point in spread], low, high, color=GREY, alpha=0.6, linewidth=0.6)
    scores = [point.score for point in points]
    axes.set_ylim(shares(scores, [point.interval for point in spread if point.interval and point in best], 0.1, 0.1))
    others = [point for point in points if point.row not in looks]
    axes.plot([one.cost for one in others], [one.score for one in others], ".", color=GREY, markersize=3, zorder=3)
    for point in points:
        if point.row in looks:
            axes.plot(point.cost, point.score, zorder=4, **look(looks[point.row]))
    axes.yaxis.set_major_locator(MaxNLocator(8, steps=ROUND))
    axes.ticklabel_format(axis="y", useOffset=False)


def _few_decades(axes: Axes, ratio: float) -> None:
    """Ticks at 1, 2 and 5 where the axis has but one or two powers of ten."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.xaxis.set_major_locator(LogLocator(subs=(1,) if ratio > 300 else (1, 3) if ratio > 30 else (1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _short(value: float) -> str:
    """``200k``, ``3M``"""
    for unit, factor in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= factor:
            return f"{value / factor:g}{unit}"
    return f"{value:g}"

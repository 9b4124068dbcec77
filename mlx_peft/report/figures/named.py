"""One panel of accuracy against a cost in which every mark has its name beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from mlx_peft.core.text import printable
from mlx_peft.report.drawing import COLOURS, fitted
from mlx_peft.report.drawing import width as inches
from mlx_peft.report.figures.labels import Box, Spot, leader, placed
from mlx_peft.report.figures.layout import GREY, POINTS, ROUND, SMALL, shares, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

HEIGHTS = (4.0, 4.8, 5.8, 7.0)
"""Inches: the first in which all names have room."""
LEFT, RIGHT, BELOW, ABOVE = 0.55, 0.12, 0.45, 0.32
"""Inches around the panel."""
LONGEST = 1.5
"""Inches of a name."""
LETTER = 1.2
"""Heights of a line, in sizes of its letters."""
DARK, OTHER = "#004a78", "#333333"
"""Names of what nothing else beats, and of the others."""


@dataclass(frozen=True)
class Mark:
    """What is drawn of a configuration.

    Attributes:
        score: in per cent; ``interval`` likewise, None of one seed.
        best: whether nothing else beats it.
    """

    name: str
    cost: float
    score: float
    interval: tuple[float, float] | None
    best: bool


def named(marks: Sequence[Mark], axis: str, heading: str, title: str, width: float, *, log: bool) -> Figure | None:
    """The figure; None where there is no room for all names."""
    for height in HEIGHTS:
        figure, axes = _panel(marks, width, height, log=log)
        boxes = _boxes(axes, marks)
        if boxes is not None:
            _draw(axes, marks, boxes)
            axes.set_title(fitted(title, width - LEFT - RIGHT, POINTS), fontsize=POINTS, loc="left", parse_math=False)
            axes.set_xlabel(axis, fontsize=POINTS)
            axes.set_ylabel(heading, fontsize=POINTS)
            return figure
    return None


def _panel(marks: Sequence[Mark], width: float, height: float, *, log: bool) -> tuple[Figure, Axes]:
    """The axes with their limits: where each mark stands is known before anything is drawn."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(width, height))
    axes = figure.add_axes(
        (LEFT / width, BELOW / height, 1 - (LEFT + RIGHT) / width, 1 - (BELOW + ABOVE) / height)  # fractions
    )
    tidy(axes)
    costs, scores = [mark.cost for mark in marks], [mark.score for mark in marks]
    if log:
        axes.set_xscale("log")
        room = (max(costs) / min(costs)) ** 0.06
        axes.set_xlim(min(costs) / room, max(costs) * room)
    else:
        aside = 0.06 * (max(costs) - min(costs))
        axes.set_xlim(min(costs) - aside, max(costs) + aside)
        axes.xaxis.set_major_locator(MaxNLocator(6, steps=ROUND))
    axes.set_ylim(shares(scores, [mark.interval for mark in marks if mark.best and mark.interval], 0.1, 0.07))
    axes.yaxis.set_major_locator(MaxNLocator(8, steps=ROUND))
    axes.ticklabel_format(axis="y", useOffset=False)
    return figure, axes


def _spots(axes: Axes, places: Sequence[tuple[float, float]]) -> list[Spot]:
    """Data as points of 1/72 inch from the lower left corner of the panel."""
    figure = axes.get_figure()
    assert figure is not None
    scale = 72 / figure.dpi
    corner = axes.transAxes.transform((0.0, 0.0))
    return [tuple(scale * (axes.transData.transform(place) - corner)) for place in places]


def _boxes(axes: Axes, marks: Sequence[Mark]) -> list[Box] | None:
    """Where the names stand: those of the best choose first, then those that have most others around them."""
    spots = _spots(axes, [(mark.cost, mark.score) for mark in marks])
    (size,) = _spots(axes, [(axes.get_xlim()[1], axes.get_ylim()[1])])
    names = [(72 * min(LONGEST, inches(printable(mark.name), SMALL)), LETTER * SMALL) for mark in marks]
    upright = [[(mark.cost, end) for end in mark.interval] for mark in marks if mark.interval is not None]
    steps = [[(one.cost, one.score), (other.cost, one.score)] for one, other in pairwise(_front(marks))]
    steps += [[(other.cost, one.score), (other.cost, other.score)] for one, other in pairwise(_front(marks))]
    ends = _spots(axes, [end for line in (*upright, *steps, *steps) for end in line])  # steps count twice
    bars = [*zip(ends[::2], ends[1::2], strict=True)]

    def crowd(number: int) -> float:
        x, y = spots[number]
        return -sum(1 / (100 + (x - other[0]) ** 2 + (y - other[1]) ** 2) for other in spots)

    order = sorted(range(len(marks)), key=lambda number: (not marks[number].best, crowd(number)))
    return placed(spots, names, size, order, bars)


def _front(marks: Sequence[Mark]) -> list[Mark]:
    return sorted((mark for mark in marks if mark.best), key=lambda mark: mark.cost)


def _draw(axes: Axes, marks: Sequence[Mark], boxes: Sequence[Box]) -> None:
    spots = _spots(axes, [(mark.cost, mark.score) for mark in marks])
    (size,) = _spots(axes, [(axes.get_xlim()[1], axes.get_ylim()[1])])
    best = _front(marks)
    axes.plot(
        [mark.cost for mark in best],
        [mark.score for mark in best],
        color=COLOURS[0],
        alpha=0.45,
        linewidth=1.2,
        drawstyle="steps-post",
        zorder=2,
    )
    for mark, box, spot in zip(marks, boxes, spots, strict=True):
        colour = COLOURS[0] if mark.best else GREY
        if mark.interval is not None:
            axes.vlines(mark.cost, *mark.interval, color=colour, alpha=0.5, linewidth=0.8, zorder=2.5)
        axes.plot(mark.cost, mark.score, "o", color=colour, markeredgecolor="white", markeredgewidth=0.5,
                  markersize=6 if mark.best else 5, zorder=4)  # fmt: skip
        if (line := leader(box, spot)) is not None:
            ends = [[end[at] / size[at] for end in line] for at in (0, 1)]
            axes.plot(*ends, color=GREY, linewidth=0.5, transform=axes.transAxes, zorder=3)
        axes.text(
            box.left / size[0],
            (box.bottom + box.top) / 2 / size[1],
            fitted(mark.name, LONGEST, SMALL),
            transform=axes.transAxes,
            va="center",
            fontsize=SMALL,
            color=DARK if mark.best else OTHER,
            parse_math=False,
            zorder=5,
        )

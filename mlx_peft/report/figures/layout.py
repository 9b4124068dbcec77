"""What the figures of a report share: the sizes of papers, panels for data sets, a legend that hides nothing."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mlx_peft.core.text import printable
from mlx_peft.report.drawing import COLOURS, DASHES, MARKS, fitted, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SIZES = {"single": 3.5, "double": 7.16}
"""Inches: one column of a paper and two, as IEEE and others have them; most others are within a tenth of these."""
TALLEST = 9.0
"""Inches of a page without its margins."""
POINTS, SMALL = 8.0, 7.0
"""The letters of axes, and of ticks, legends and notes."""
NAMED, MARKED = len(COLOURS) * len(DASHES), len(COLOURS) * len(MARKS)
"""So many lines, and so many marks, can be told apart; of more, those that matter are named, and the others grey."""
GREY = "#9a9a9a"
ROUND = (1, 2, 5, 10)
"""Steps between the ticks of an axis, times a power of ten."""
LINE = 0.145
"""Inches of a line of small letters."""


@dataclass(frozen=True)
class Drawing:
    """A figure that can be drawn at any width.

    Attributes:
        name: of its files.
        caption: what it shows, and how to read it, for a page.
        draw: inches of width to the figure.
        wide: whether it is made for two columns: it has several panels.
    """

    name: str
    caption: str
    draw: Callable[[float], Figure]
    wide: bool = False


def panels(
    count: int, width: float, height: float, below: float = 0.0, *, share_y: bool = False
) -> tuple[Figure, list[Axes]]:
    """A figure with so many axes, as many in a row as the width has room for.

    Args:
        height: inches of a row of axes.
        below: inches that are kept free for a legend.
    """
    from matplotlib.figure import Figure  # here, since nothing else of a command waits for it

    columns = across(count, width)
    rows = math.ceil(count / columns)
    tall = min(height, (TALLEST - below) / rows)
    figure = Figure(figsize=(width, rows * tall + below), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharey=share_y).ravel()
    for axes in grid[count:]:
        axes.set_visible(False)
    for axes in grid[:count]:
        tidy(axes)
    return figure, list(grid[:count])


def label_rows(figure: Figure, called: str, below: float) -> None:
    """What the upright axes of all panels have in common, beside their middle and not that of what is below them."""
    height = figure.get_size_inches()[1]
    figure.supylabel(called, y=(1 + below / height) / 2, fontsize=POINTS)


def across(count: int, width: float) -> int:
    """How many of so many axes stand in a row: as many as leave each room for its letters, and few rows."""
    usual = max(1, math.floor(width / 2.3))
    return min(count, usual if count <= 3 * usual else math.floor(width / 1.7))


def tidy(axes: Axes) -> None:
    """No frame but the two axes, a faint grid behind all, small letters."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.tick_params(labelsize=SMALL, which="both")


def shares(
    scores: Sequence[float], intervals: Sequence[tuple[float, float]], below: float, above: float
) -> tuple[float, float]:
    """From where to where an axis of shares, in per cent, goes.

    It has all scores, with ``below`` and ``above`` parts of their range as room, and each end of an interval that is no
    further beyond them than half of that range: a wide one, as of two seeds, would hide what the scores say.
    """
    low, high = min(scores), max(scores)
    span = (high - low) or 10.0
    starts = [start for start, _ in intervals if start >= low - span / 2]
    ends = [end for _, end in intervals if end <= high + span / 2]
    lowest = min([low - below * span, *(start - span / 50 for start in starts)])
    highest = max([high + above * span, *(end + span / 50 for end in ends)])
    return max(-1.0, lowest), min(101.0, highest)


def legend_lines(names: Sequence[str], width: float) -> tuple[int, float]:
    """How many columns a legend of these names has below a figure of that width, and its inches."""
    from mlx_peft.report.drawing import width as inches

    if not names:
        return 1, 0.0
    longest = min(max(inches(printable(name), SMALL) for name in names), _most(width)) + 0.42
    columns = max(1, min(len(names), math.floor((width - 0.1) / longest)))
    return columns, 0.12 + LINE * math.ceil(len(names) / columns)


def _most(width: float) -> float:
    """Inches of the longest name in a legend."""
    return min(2.6, width - 0.6)


def legend(figure: Figure, names: Sequence[str], width: float, *, lines: bool = False) -> None:
    """Names below the figure, in the order and the looks of ``style``."""
    from matplotlib.lines import Line2D

    if not names:
        return
    columns, _ = legend_lines(names, width)
    shown = [fitted(name, _most(width), SMALL) for name in names]
    looks = [look(at, lines=lines) for at in range(len(names))]
    found = figure.legend(
        [Line2D([], [], **one) for one in looks],
        ["-"] * len(names),
        frameon=False,
        fontsize=SMALL,
        loc="outside lower center",
        ncols=columns,
        handlelength=1.6 if lines else 0.8,
        columnspacing=1.0,
        handletextpad=0.4,
        labelspacing=0.3,
        borderaxespad=0.1,
    )
    for text, name in zip(found.get_texts(), shown, strict=True):
        text.set_parse_math(False)  # a name may have dollar signs, or begin with the underscore that hides a label
        text.set_text(name)


def look(index: int, *, lines: bool = False) -> dict[str, Any]:
    """A mark, or a line with marks, of a number."""
    found = style(index)
    return {**found, "linewidth": 1.3, "markersize": 3.5} if lines else {**found, "linestyle": "", "markersize": 4.5}


def titled(axes: Axes, name: str, width: float) -> None:
    """A panel's name, which may hold anything."""
    axes.set_title(fitted(name, width, POINTS), fontsize=POINTS, parse_math=False)

"""What was measured epoch by epoch: accuracy, or what leads in its place, and losses; a line for each configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING

from mlx_peft.report.figures.layout import (
    POINTS,
    Drawing,
    across,
    label_rows,
    legend,
    legend_lines,
    look,
    panels,
    titled,
)
from mlx_peft.report.gather import FinishedRun
from mlx_peft.report.groups import Group, Spread, grouped
from mlx_peft.report.study import Study
from mlx_peft.tasks.registry import figures, leading_metrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DRAWN = 20
"""Lines that can be told apart, and whose names fit."""
MOST_SETS = 20

Curve = list[tuple[int, Spread]]
"""Epochs, each with what the seeds gave."""

LOSSES = {"val_loss": "validation loss", "train_loss": "training loss"}
HEIGHT = 1.9
SHADE = 1.2
"""Of many bands each is the fainter, so that what they cover together is not one colour."""
WIDE = 10
"""Losses are drawn on a logarithmic scale where the largest is so many times the smallest."""


def learning(study: Study) -> Drawing | None:
    """Of one data set three panels; of several a panel for each, with what leads in its task.

    None where no run recorded an epoch.
    """
    caption = "Epoch by epoch: the mean over seeds, and a band of one standard deviation to each side."
    if len(study.board.columns) > 1:
        sets = _by_set(study)
        return Drawing("curves", caption, lambda width: _draw_sets(study, sets, width), True) if sets else None
    groups, measure = _comparable(study.compared)
    if not groups:
        return None
    if len(groups) > DRAWN:
        caption += f" The best {DRAWN} of {len(groups):,} configurations."
    rows = {group.runs[0].name: row for (row, _), group in study.board.cells.items()}
    return Drawing("curves", caption, lambda width: _draw(groups, measure, width, rows), True)


def draw(runs: Sequence[FinishedRun], width: float) -> Figure | None:
    """The figure of runs on one data set; None where no run recorded an epoch. Of more configurations than DRAWN, the
    best ones, or the first.

    A line is the mean over the seeds of a configuration, and the band one standard deviation of them to each side. Only
    what can be compared is drawn: the AUROC of runs that have no accuracy only where no run has one.
    """
    groups, measure = _comparable(runs)
    return _draw(groups, measure, width) if groups else None


def _comparable(runs: Sequence[FinishedRun]) -> tuple[list[Group], str | None]:
    groups = grouped(runs)
    measure = next((name for name in leading_metrics() if any(one.curve(f"val_{name}") for one in groups)), None)
    if measure is not None:
        groups = [one for one in groups if one.curve(f"val_{measure}") or not _validated(one)]
    return [one for one in groups if any(one.curve(key) for key in (f"val_{measure}", *LOSSES))], measure


def _draw(
    groups: Sequence[Group], measure: str | None, width: float, rows: Mapping[str, str] = MappingProxyType({})
) -> Figure:
    """``rows``: what the tables call a configuration, by the name of its first run."""
    chosen = _best(groups, f"val_{measure}")
    keys = {f"val_{measure}": f"validation {figures()[measure]} (%)"} if measure is not None else {}
    shown = {key: called for key, called in (keys | LOSSES).items() if any(one.curve(key) for one in chosen)}
    names = [_called(one, rows) for one in chosen]
    _, below = legend_lines(names, width)
    figure, grid = panels(len(shown), width, HEIGHT, below)
    for axes, (key, called) in zip(grid, shown.items(), strict=True):
        found = {at: curve for at, one in enumerate(chosen) if (curve := one.curve(key))}
        _panel(axes, found, of=len(chosen), share=key not in LOSSES)
        axes.set_ylabel(called, fontsize=POINTS)
    legend(figure, names, width, lines=True)
    if (left_out := len(groups) - len(chosen)) > 0:
        figure.suptitle(f"the best {DRAWN} of {DRAWN + left_out:,} configurations", fontsize=POINTS)
    return figure


def _by_set(study: Study) -> dict[int, dict[str, Curve]]:
    """By data set the curves of each row."""
    found: dict[int, dict[str, Curve]] = {}
    for (row, at), group in study.board.cells.items():
        if curve := group.curve(f"val_{study.board.columns[at].measure}"):
            found.setdefault(at, {})[row] = curve
    return {at: found[at] for at in sorted(found)[:MOST_SETS]}


def _draw_sets(study: Study, sets: Mapping[int, Mapping[str, Curve]], width: float) -> Figure:
    rows = [row for row in study.board.rows if any(row in lines for lines in sets.values())]
    means = {row: _mean([lines[row][-1][1].mean for lines in sets.values() if row in lines]) for row in rows}
    best = sorted(rows, key=lambda row: -means[row])[:DRAWN]
    chosen = [row for row in rows if row in best]
    _, below = legend_lines(chosen, width)
    figure, grid = panels(len(sets), width, HEIGHT, below)
    for axes, (at, lines) in zip(grid, sets.items(), strict=True):
        there = study.board.columns[at]
        _panel(
            axes,
            {chosen.index(row): curve for row, curve in lines.items() if row in chosen},
            of=len(chosen),
            share=True,
        )
        titled(axes, there.dataset, width / across(len(sets), width) - 0.4)
    measures = {figures()[study.board.columns[at].measure] for at in sets}
    label_rows(figure, f"validation {' or '.join(sorted(measures))} (%)", below)
    legend(figure, chosen, width, lines=True)
    return figure


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _validated(group: Group) -> bool:
    return any(group.curve(f"val_{name}") for name in leading_metrics())


def _best(groups: Sequence[Group], key: str) -> list[Group]:
    """As many as can be told apart, those with the highest means, in the order that they had."""

    def highest(group: Group) -> float:
        return max((spread.mean for _, spread in group.curve(key)), default=0.0)

    kept = sorted(range(len(groups)), key=lambda at: -highest(groups[at]))[:DRAWN]
    return [groups[at] for at in sorted(kept)]


def _called(group: Group, rows: Mapping[str, str]) -> str:
    name = rows.get(group.runs[0].name, group.name)
    return name if len(group.runs) == 1 else f"{name} (n = {len(group.runs)})"


def _panel(axes: Axes, curves: Mapping[int, Curve], *, of: int, share: bool) -> None:
    """The lines by their number, of so many: where they are a ``share``, in per cent."""
    from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, StrMethodFormatter

    if not curves:
        return
    scale = 100 if share else 1
    last = max(epoch for curve in curves.values() for epoch, _ in curve)
    for number, curve in curves.items():
        aside = 0.0 if last > 1 or of == 1 else 0.5 * (number / (of - 1) - 0.5)  # of one epoch the points would hide
        epochs = [epoch + aside for epoch, _ in curve]
        means = [scale * spread.mean for _, spread in curve]
        own = look(number, lines=True) | {"markersize": 2.5 if len(curve) <= 30 else 0}
        axes.plot(epochs, means, **own)
        if any(spread.deviation for _, spread in curve):
            around = [scale * (spread.deviation or 0.0) for _, spread in curve]
            if len(curve) == 1:
                axes.errorbar(epochs, means, around, color=own["color"], capsize=2, linewidth=1)
            else:
                low, high = ([mean + sign * one for mean, one in zip(means, around, strict=True)] for sign in (-1, 1))
                axes.fill_between(epochs, low, high, color=own["color"], alpha=min(0.18, SHADE / of), linewidth=0)
    values = [scale * spread.mean for curve in curves.values() for _, spread in curve]
    if not share and min(values) > 0 and max(values) > WIDE * min(values):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    else:
        axes.ticklabel_format(axis="y", useOffset=False)
    if share:  # no room above all that is right
        axes.set_ylim(max(axes.get_ylim()[0], -2), min(axes.get_ylim()[1], 102))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if last == 1:
        axes.set_xlim(0.5, 1.5)
        axes.set_xticks([1])
    axes.set_xlabel("epoch", fontsize=POINTS)

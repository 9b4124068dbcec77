"""What was measured epoch by epoch: accuracy, or what leads in its place, and losses; a line for each configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, StrMethodFormatter

from mlx_peft.report.drawing import fitted, style
from mlx_peft.report.gather import FinishedRun
from mlx_peft.report.groups import Group, Spread, grouped
from mlx_peft.tasks.registry import figures, leading_metrics

DRAWN = 20
"""Lines that can be told apart, and whose names fit."""

Curve = list[tuple[int, Spread]]
"""Epochs, each with what the seeds gave."""

LOSSES = {"val_loss": "validation loss", "train_loss": "training loss"}
PANEL, HEIGHT, LEGEND = 2.5, 2.9, 2.0
"""Inches: of a panel with its axis, and of the longest name in the legend."""
POINTS = 7.5
WIDE = 10
"""Losses are drawn on a logarithmic scale where the largest is so many times the smallest."""


def draw(runs: Sequence[FinishedRun]) -> Figure | None:
    """The figure; None where no run recorded an epoch. Of more configurations than DRAWN, the best ones, or the first.

    A line is the mean over the seeds of a configuration, and the band one standard deviation of them to each side. Only
    what can be compared is drawn: the AUROC of runs that have no accuracy only where no run has one.
    """
    groups = grouped(runs)
    measure = next((name for name in leading_metrics() if any(one.curve(f"val_{name}") for one in groups)), None)
    if measure is not None:
        groups = [one for one in groups if one.curve(f"val_{measure}") or not _validated(one)]
    groups = [one for one in groups if any(one.curve(key) for key in (f"val_{measure}", *LOSSES))]
    chosen = _best(groups, f"val_{measure}")
    keys = {f"val_{measure}": f"validation {figures()[measure]} (%)"} if measure is not None else {}
    panels = {key: called for key, called in (keys | LOSSES).items() if any(one.curve(key) for one in chosen)}
    if not panels:
        return None
    names = [fitted(_called(one), LEGEND, POINTS) for one in chosen]
    figure = Figure(figsize=(PANEL * len(panels) + LEGEND, max(HEIGHT, 0.5 + 0.15 * len(names))), layout="constrained")
    for axes, (key, called) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        curves = {at: curve for at, one in enumerate(chosen) if (curve := one.curve(key))}
        _panel(axes, curves, of=len(chosen), share=key not in LOSSES)
        axes.set_ylabel(called, fontsize=9)
    _legend(figure, names)
    if (left_out := len(groups) - len(chosen)) > 0:
        figure.suptitle(f"the best {DRAWN} of {DRAWN + left_out:,} configurations", fontsize=8)
    return figure


def _validated(group: Group) -> bool:
    return any(group.curve(f"val_{name}") for name in leading_metrics())


def _best(groups: Sequence[Group], key: str) -> list[Group]:
    """As many as can be told apart, those with the highest means, in the order that they had."""

    def highest(group: Group) -> float:
        return max((spread.mean for _, spread in group.curve(key)), default=0.0)

    kept = sorted(range(len(groups)), key=lambda at: -highest(groups[at]))[:DRAWN]
    return [groups[at] for at in sorted(kept)]


def _called(group: Group) -> str:
    return group.name if len(group.runs) == 1 else f"{group.name} (n = {len(group.runs)}, mean ± s.d.)"


def _panel(axes: Axes, curves: Mapping[int, Curve], *, of: int, share: bool) -> None:
    """The lines by their number, of so many: where they are a ``share``, in per cent."""
    scale = 100 if share else 1
    last = max(epoch for curve in curves.values() for epoch, _ in curve)
    for number, curve in curves.items():
        aside = 0.0 if last > 1 or of == 1 else 0.5 * (number / (of - 1) - 0.5)  # of one epoch the points would hide
        epochs = [epoch + aside for epoch, _ in curve]
        means = [scale * spread.mean for _, spread in curve]
        look = style(number)
        axes.plot(epochs, means, **look, linewidth=1.4, markersize=3 if len(curve) <= 30 else 0)
        if any(spread.deviation for _, spread in curve):
            around = [scale * (spread.deviation or 0.0) for _, spread in curve]
            if len(curve) == 1:
                axes.errorbar(epochs, means, around, color=look["color"], capsize=2, linewidth=1)
            else:
                low, high = ([mean + sign * one for mean, one in zip(means, around, strict=True)] for sign in (-1, 1))
                axes.fill_between(epochs, low, high, color=look["color"], alpha=0.18, linewidth=0)
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
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8, which="both")
    axes.set_xlabel("epoch", fontsize=9)
    axes.grid(alpha=0.25, linewidth=0.6)


def _legend(figure: Figure, names: Sequence[str]) -> None:
    from matplotlib.lines import Line2D

    lines = [Line2D([], [], **style(at), linewidth=1.4, markersize=3) for at in range(len(names))]
    legend = figure.legend(lines, ["-"] * len(lines), frameon=False, fontsize=POINTS, loc="outside right center")
    for text, name in zip(legend.get_texts(), names, strict=True):
        text.set_parse_math(False)  # a name may have dollar signs, or begin with the underscore that hides a label
        text.set_text(name)

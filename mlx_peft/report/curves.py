"""Validation accuracy, or what leads in its place, by epoch, one line a run."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mlx_peft.core.text import printable
from mlx_peft.report.drawing import png
from mlx_peft.report.gather import FinishedRun
from mlx_peft.tasks.registry import figures, leading_metrics

# Okabe and Ito's palette, told apart with any colour vision; the order repeats with other dashes.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("-", "--", ":", "-.")
DRAWN = 20
"""Lines that can be told apart, and whose names fit."""


def draw(runs: Sequence[FinishedRun]) -> bytes | None:
    """The figure as PNG, 300 dots an inch; None where no run was validated. Of more runs than DRAWN, the best ones.

    Only what can be compared is drawn: the AUROC of runs that have no accuracy only where no run has one.
    """
    for measure in leading_metrics():
        found = {run.name: run.curve(f"val_{measure}") for run in runs}
        curves = {name: curve for name, curve in found.items() if curve}
        if curves:
            break
    else:
        return None
    best = sorted(curves, key=lambda name: -max(value for _, value in curves[name]))[:DRAWN]
    left_out = len(curves) - len(best)
    curves = {name: curve for name, curve in curves.items() if name in best}
    figure = Figure(figsize=(5.2, 3.4), layout="constrained")
    axes = figure.add_subplot()
    lines = []
    for index, curve in enumerate(curves.values()):
        dashes = DASHES[index // len(COLOURS) % len(DASHES)]
        lines += axes.plot(
            [epoch for epoch, _ in curve],
            [100 * value for _, value in curve],
            color=COLOURS[index % len(COLOURS)],
            linestyle=dashes,
            linewidth=1.6,
            marker="o",
            markersize=3,
        )
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8)
    axes.set_xlabel("epoch")
    axes.set_ylabel(f"validation {figures()[measure]} (%)")
    if left_out:
        axes.set_title(f"the best {DRAWN} of {DRAWN + left_out:,} runs", fontsize=8)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.25, linewidth=0.6)
    legend = axes.legend(lines, ["-"] * len(lines), frameon=False, fontsize=8)
    for text, name in zip(legend.get_texts(), curves, strict=True):
        text.set_parse_math(False)  # a name may have dollar signs, or begin with the underscore that hides a label
        text.set_text(printable(name))
    return png(figure, 300)

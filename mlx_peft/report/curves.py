"""Validation accuracy, or what leads in its place, by epoch, one line a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mlx_peft.report.drawing import save
from mlx_peft.report.format import NAMED
from mlx_peft.report.gather import Run

# Okabe and Ito's palette, told apart with any colour vision; the order repeats with other dashes.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("-", "--", ":", "-.")


def draw(runs: Sequence[Run], path: Path) -> bool:
    """Writes the figure as PNG, 300 dots an inch. Returns False, and writes nothing, where no run was validated.

    Only what can be compared is drawn: the AUROC of runs that have no accuracy only where no run has one.
    """
    for measure in ("top1", "auroc"):
        found = {run.name: run.curve(f"val_{measure}") for run in runs}
        curves = {name: curve for name, curve in found.items() if curve}
        if curves:
            break
    else:
        return False
    figure = Figure(figsize=(5.2, 3.4), layout="constrained")
    axes = figure.add_subplot()
    for index, (name, curve) in enumerate(curves.items()):
        dashes = DASHES[index // len(COLOURS) % len(DASHES)]
        axes.plot(
            [epoch for epoch, _ in curve],
            [100 * value for _, value in curve],
            label=name,
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
    axes.set_ylabel(f"validation {NAMED[measure]} (%)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.legend(frameon=False, fontsize=8)
    save(figure, path, 300)
    return True

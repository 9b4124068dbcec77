"""How a run dealt out the ranks: a heat map, block by layer."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mlx_peft.core.writing import write_together
from mlx_peft.report.drawing import pictures
from mlx_peft.training.run import read_metrics

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 200
"""Dots an inch of the picture for the screen."""
PREFIX = "rank/"
ADAPTER = re.compile(r"blocks\.(\d+)\.(?:attn|mlp)\.(.+)")
COLUMNS = ("qkv", "qkv/q", "qkv/k", "qkv/v", "q_proj", "k_proj", "v_proj", "proj", "fc1", "fc1_g", "fc1_x", "fc2")
"""The layers in the order in which a block computes them."""


def last_ranks(records: Iterable[Mapping[str, float]]) -> dict[str, int]:
    """The ranks that were recorded last, by adapter: ``blocks.0.attn.qkv``; empty where none were."""
    found: dict[str, int] = {}
    for record in records:
        found |= {name.removeprefix(PREFIX): int(rank) for name, rank in record.items() if name.startswith(PREFIX)}
    return found


def draw(ranks: Mapping[str, int]) -> Figure | None:
    """The figure; None where there are no ranks."""
    cells = {(int(match[1]), match[2]): rank for name, rank in ranks.items() if (match := ADAPTER.fullmatch(name))}
    if not cells:
        return None
    from matplotlib.figure import Figure  # here, since most runs draw nothing and need not wait for it
    from matplotlib.ticker import MaxNLocator

    blocks = sorted({block for block, _ in cells})
    columns = sorted({column for _, column in cells}, key=COLUMNS.index)
    grid = np.array([[cells.get((block, column), np.nan) for column in columns] for block in blocks])
    highest = max(cells.values())
    figure = Figure(figsize=(1.6 + 0.75 * len(columns), 1.1 + 0.3 * len(blocks)), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(grid, cmap="viridis", vmin=0, vmax=max(highest, 1), aspect="auto")
    for (row, column), rank in np.ndenumerate(grid):
        if np.isfinite(rank):
            colour = "black" if rank > 0.5 * highest else "white"  # viridis is light at its upper end
            axes.text(column, row, f"{rank:.0f}", ha="center", va="center", color=colour, fontsize=8)
    axes.set_xticks(range(len(columns)), [column.rpartition("/")[2] for column in columns])
    axes.set_yticks(range(len(blocks)), [str(block) for block in blocks])
    axes.set_xlabel("layer")
    axes.set_ylabel("block")
    axes.tick_params(labelsize=8, length=0)
    axes.spines[:].set_visible(False)
    axes.set_title(f"{sum(cells.values())} triplets kept, {np.nanmean(grid):.1f} a layer", fontsize=9)
    bar = figure.colorbar(image, ax=axes, label="rank")
    bar.ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_visible(False)
    return figure


def write(run: Path) -> Path | None:
    """Draws the final ranks of a run into its folder, as ``ranks.png`` and ``ranks.pdf``; None where it dealt none out.

    Raises UserError where its metrics cannot be read or the figure cannot be written.
    """
    out, metrics = run / "ranks.png", run / "metrics.jsonl"
    figure = draw(last_ranks(read_metrics(metrics))) if metrics.exists() else None
    if figure is None:
        return None
    write_together({out.with_suffix(ending): content for ending, content in pictures(figure, DPI).items()})
    return out

"""Places and ranks as heat maps: which method is where on which data set, and how a run dealt out its ranks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mlx_peft.report import ranks
from mlx_peft.report.drawing import fitted
from mlx_peft.report.figures.layout import POINTS, SMALL, Drawing, across, panels, titled
from mlx_peft.report.groups import Group
from mlx_peft.report.significance import places
from mlx_peft.report.study import Study
from mlx_peft.report.verdicts import Standing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ROWS = 60
"""The best of more rows are drawn."""
MOST_DEALT = 6
"""So many configurations that deal out ranks are drawn, at most: the first."""


def placings(study: Study) -> Drawing | None:
    """The place of each method on each data set; None of fewer than two sets or methods."""
    found = study.standing
    if found is None:
        return None
    caption = (
        "The place of each method on each data set, 1 for the best, equal ones sharing theirs; the last column is the "
        "mean. Methods without a result on one of the sets are left out."
    )
    return Drawing("places", caption, lambda width: _places(study, found, width), len(study.board.columns) > 5)


def _places(study: Study, found: Standing, width: float) -> Figure:
    from matplotlib.figure import Figure

    order = sorted(range(len(found.rows)), key=lambda at: found.places[found.rows[at]])[:ROWS]
    each = places(found.scores)[:, order].T
    grid = np.column_stack([each, each.mean(axis=1)])
    names = [*(one.dataset for one in study.board.columns), "mean"]
    figure = Figure(figsize=(width, 1.35 + 0.16 * len(order)), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(grid, cmap="cividis_r", aspect="auto", vmin=1, vmax=max(2, len(found.rows)))
    room = (width - 1.6) / len(names)
    if room > 0.18:
        _numbers(axes, grid, len(found.rows) / 2, SMALL if room > 0.3 else SMALL - 1, dark_is_high=True)
    axes.axvline(len(names) - 1.5, color="white", linewidth=2)
    upright = room > 0.75
    axes.set_xticks(
        range(len(names)),
        [fitted(name, room if upright else 1.0, SMALL) for name in names],
        rotation=0 if upright else 90,
        parse_math=False,
    )
    axes.set_yticks(
        range(len(order)), [fitted(found.rows[at], min(1.8, width / 3), SMALL) for at in order], parse_math=False
    )
    axes.tick_params(length=0, labelsize=SMALL)
    axes.spines[:].set_visible(False)
    bar = figure.colorbar(image, ax=axes, shrink=0.8, pad=0.02)
    bar.set_label("place", fontsize=POINTS)
    bar.ax.tick_params(labelsize=SMALL)
    bar.outline.set_visible(False)
    return figure


def dealt(study: Study) -> Drawing | None:
    """The ranks that were dealt out, block by layer, the mean over seeds; None where no run dealt any."""
    found = {row: grid for (row, _), group in study.board.cells.items() if (grid := _dealt(group))}
    shown = dict([*found.items()][:MOST_DEALT])
    if not shown:
        return None
    caption = "The ranks that training left to each layer of each block, the mean over seeds."
    if len(found) > len(shown):
        caption += f" The first {len(shown)} of {len(found)} configurations."
    return Drawing("ranks", caption, lambda width: _ranks(shown, width), len(shown) > 1)


def _dealt(group: Group) -> dict[tuple[int, str], float]:
    """Mean final ranks by block and layer; empty where there are none."""
    found: dict[tuple[int, str], list[int]] = {}
    for run in group.runs:
        for name, rank in ranks.last_ranks(run.metrics).items():
            if (match := ranks.ADAPTER.fullmatch(name)) and match[2] in ranks.COLUMNS:
                found.setdefault((int(match[1]), match[2]), []).append(rank)
    return {place: float(np.mean(values)) for place, values in found.items()}


def _ranks(found: dict[str, dict[tuple[int, str], float]], width: float) -> Figure:
    blocks = sorted({block for cells in found.values() for block, _ in cells})
    layers = sorted({layer for cells in found.values() for _, layer in cells}, key=ranks.COLUMNS.index)
    highest = max(max(cells.values()) for cells in found.values())
    figure, grid = panels(len(found), width, 0.85 + 0.16 * len(blocks))
    columns = across(len(found), width)
    for axes, (name, cells) in zip(grid, found.items(), strict=True):
        values = np.array([[cells.get((block, layer), np.nan) for layer in layers] for block in blocks])
        image = axes.imshow(values, cmap="cividis", aspect="auto", vmin=0, vmax=max(highest, 1))
        if (width / columns - 1.0) / len(layers) > 0.25:
            _numbers(axes, values, highest / 2, SMALL - 1, dark_is_high=False)
        axes.set_xticks(range(len(layers)), [layer.rpartition("/")[2] for layer in layers], rotation=45, ha="right")
        axes.set_yticks(range(len(blocks)), [str(block) for block in blocks])
        axes.set_ylabel("block", fontsize=POINTS)
        axes.grid(False)
        axes.tick_params(length=0, labelsize=SMALL)
        axes.spines[:].set_visible(False)
        titled(axes, name, width / columns - 0.5)
    bar = figure.colorbar(image, ax=grid, shrink=0.8, pad=0.02)
    bar.set_label("rank", fontsize=POINTS)
    bar.ax.tick_params(labelsize=SMALL)
    bar.outline.set_visible(False)
    return figure


def _numbers(axes: Axes, grid: np.ndarray, middle: float, points: float, *, dark_is_high: bool) -> None:
    """The values in their cells, light on dark and dark on light."""
    for (row, column), value in np.ndenumerate(grid):
        if np.isfinite(value):
            white = (value > middle) == dark_is_high
            shown = f"{value:.0f}" if value == round(value) else f"{value:.1f}"
            axes.text(
                column, row, shown, ha="center", va="center", fontsize=points, color="white" if white else "black"
            )

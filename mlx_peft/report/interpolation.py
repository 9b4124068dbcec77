"""The models between a base and an adapter as a person reads them: a table, a spreadsheet, a picture."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_peft.artifacts.interpolate import Curve
from mlx_peft.core.text import counted, printable
from mlx_peft.core.writing import disk_errors, write_together
from mlx_peft.report.blocks import Columns
from mlx_peft.report.drawing import COLOURS, fitted, pictures
from mlx_peft.report.format import decimal, percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 200
"""Dots an inch of the picture for the screen."""
WIDTH = 5.6
"""Inches of the picture."""


def lines(curve: Curve) -> list[str]:
    """The table, and what follows from it."""
    measures = _figures(curve)
    headings = ["alpha", *(f"{curve.split} {called} (%)" for called in measures.values()), f"{curve.split} loss"]
    rows = [
        [f"{alpha:g}", *(percent(metrics[name]) for name in measures), decimal(metrics["loss"], 4)]
        for alpha, metrics in curve.points
    ]
    said = f"between the base (alpha 0) and {printable(curve.of)} (alpha 1), on {_images(curve)}"
    found = [said, "", *Columns(headings, numeric=headings).aligned(rows).split("\n")]
    if curve.best is not None and len(curve.points) > 1:
        found += ["", f"the best here: alpha {curve.best:g}"]
    return found


def document(curve: Curve) -> dict[str, Any]:
    """For JSON."""
    return {
        "of": curve.of,
        "split": curve.split,
        "images": curve.images,
        "sha256": curve.sha256,
        "origin": None if curve.origin is None else curve.origin.model_dump(mode="json"),
        "points": [{"alpha": alpha, "metrics": metrics} for alpha, metrics in curve.points],
        "best": curve.best,
        "notes": list(curve.notes),
    }


def write(folder: Path, curve: Curve) -> list[Path]:
    """Writes ``curve.csv``, ``curve.png`` and ``curve.pdf``, and returns them. Raises UserError where it cannot."""
    files = {folder / "curve.csv": _as_csv(curve).encode()}
    files |= {folder / f"curve{ending}": content for ending, content in pictures(draw(curve), DPI).items()}
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    write_together(files)
    return list(files)


def draw(curve: Curve) -> Figure:
    """The leading metric and the loss over alpha; a ring around the best, where one is chosen."""
    from matplotlib.figure import Figure  # here, since nothing else of a command waits for it

    panels = dict(list(_figures(curve).items())[:1]) | {"loss": "loss"}
    figure = Figure(figsize=(WIDTH, 2.9), layout="constrained")
    for axes, (name, called) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        _panel(axes, curve, name, called)
    title = fitted(f"{curve.of}, {_images(curve)}", WIDTH - 0.3, 9)
    figure.suptitle(title, fontsize=9).set_parse_math(False)
    return figure


def _panel(axes: Axes, curve: Curve, name: str, called: str) -> None:
    share = name != "loss"
    alphas = [alpha for alpha, _ in curve.points]
    values = [(100 if share else 1) * metrics[name] for _, metrics in curve.points]
    axes.plot(alphas, values, marker="o", markersize=3, linewidth=1.4, color=COLOURS[0])
    if curve.best is not None and len(alphas) > 1:
        at = alphas.index(curve.best)
        axes.plot([curve.best], [values[at]], marker="o", markersize=9, fillstyle="none", color=COLOURS[1])
    axes.set_xlabel("alpha (0: the base, 1: as trained)", fontsize=9)
    axes.set_ylabel(f"{curve.split} {called}{' (%)' if share else ''}", fontsize=9)
    axes.ticklabel_format(axis="y", useOffset=False)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.25, linewidth=0.6)


def _figures(curve: Curve) -> dict[str, str]:
    """The metrics that are fractions, and what they are called."""
    return {name: called for name, called in curve.task.figures.items() if name in curve.points[0][1]}


def _images(curve: Curve) -> str:
    return counted(curve.images, f"{curve.split} image")


def _as_csv(curve: Curve) -> str:
    file = io.StringIO()
    rows, names = csv.writer(file), [*_figures(curve), "loss", "count"]
    rows.writerow(["alpha", "split", *names])
    rows.writerows([alpha, curve.split, *(metrics[name] for name in names)] for alpha, metrics in curve.points)
    return file.getvalue()

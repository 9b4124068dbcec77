"""An evaluation as pictures: which classes are taken for which, and whether the probabilities can be believed."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mlx_peft.core.json_io import to_json
from mlx_peft.core.text import counted, csv_cell
from mlx_peft.core.writing import disk_errors, write_together
from mlx_peft.report.details import BARS, checked
from mlx_peft.report.drawing import fitted, pictures, width

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 200
"""Dots an inch of a picture for the screen."""
MOST_LABELLED = 40
"""The confusion matrix names its classes where there are at most so many."""
MOST_COUNTED = 12
"""Its cells show their numbers where there are at most so many classes."""
LABEL = 1.5
"""A class's name takes at most so many inches; the table beside the picture has it whole."""
BLUE, GREY = "#0072B2", "#999999"


def draw_confusion(confusion: Sequence[Sequence[int]], classes: Sequence[str]) -> Figure:
    """A heat map: of each true class, the share that was taken for each class.

    A row whose class has no image is left white. Long names are cut: the figure grows with the longest, up to LABEL.
    """
    from matplotlib.figure import Figure  # here, since most runs draw nothing and need not wait for it

    counts = np.asarray(confusion, float)
    totals = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, totals, out=np.full_like(counts, np.nan), where=totals > 0)
    names = [fitted(name, LABEL, 8) for name in classes] if len(classes) <= MOST_LABELLED else []
    side = 1.8 + max((width(name, 8) for name in names), default=0.4) + 0.42 * min(len(classes), 20)
    figure = Figure(figsize=(side + 0.6, side), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(100 * shares, cmap="Blues", vmin=0, vmax=100, interpolation="nearest")
    if len(classes) <= MOST_COUNTED:
        for (row, column), count in np.ndenumerate(counts):
            if count:
                colour = "white" if shares[row, column] > 0.5 else "black"
                axes.text(column, row, f"{count:.0f}", ha="center", va="center", color=colour, fontsize=8)
    if names:
        axes.set_xticks(range(len(names)), names, rotation=90, parse_math=False)  # a name may have dollar signs
        axes.set_yticks(range(len(names)), names, parse_math=False)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    axes.tick_params(labelsize=8, length=0)
    axes.spines[:].set_visible(False)
    images, right = counted(round(counts.sum()), "image"), 100 * np.trace(counts) / counts.sum()
    axes.set_title(f"{images}, {right:.2f} % right", fontsize=9)
    bar = figure.colorbar(image, ax=axes, label="share of the true class (%)", shrink=0.8)
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_visible(False)
    return figure


def draw_reliability(reliability: Mapping[str, Sequence[float | None]], ece: float) -> Figure:
    """A reliability diagram (Guo et al. 2017): accuracy by confidence, and how many images, on a logarithmic scale."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullLocator, StrMethodFormatter

    count, confidence, accuracy = (
        np.array([np.nan if value is None else value for value in reliability[name]], float)
        for name in ("count", "confidence", "accuracy")
    )
    width = 100 / len(count)
    lower = width * np.arange(len(count))
    figure = Figure(figsize=(4.2, 4.6), layout="constrained")
    axes, below = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    axes.bar(lower, 100 * accuracy, width, align="edge", color=BLUE, edgecolor="white", label="accuracy")
    axes.plot([0, 100], [0, 100], color=GREY, linestyle="--", linewidth=1, label="as confident as right")
    axes.plot(100 * confidence, 100 * accuracy, "o", color="black", markersize=3, label="at the mean confidence")
    axes.set_ylabel("right (%)")
    axes.set_ylim(0, 102)
    axes.set_xlim(0, 100)
    axes.set_title(f"expected calibration error {100 * ece:.2f} %", fontsize=9)
    figure.legend(frameon=False, fontsize=7.5, loc="outside lower center", ncols=3, handlelength=1.4, columnspacing=1.2)
    below.bar(lower, count, width, align="edge", color=GREY, edgecolor="white")
    below.set_yscale("log")
    below.set_ylim(0.5, 2 * max(1, np.nanmax(count)))  # a single image has a bar too
    below.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    below.yaxis.set_minor_locator(NullLocator())
    below.set_ylabel("images")
    below.set_xlabel("probability of the predicted class (%)")
    for part in (axes, below):
        part.spines[["top", "right"]].set_visible(False)
        part.tick_params(labelsize=8)
    return figure


def draw_classes(per_class: Mapping[str, Sequence[float | None]], classes: Sequence[str]) -> Figure:
    """Each class's AUROC and average precision, with the number of images that have it.

    A class that all images have, or none, has no bars.
    """
    from matplotlib.figure import Figure

    auroc, precision = (
        [np.nan if value is None else 100 * value for value in per_class[name]] for name in ("auroc", "map")
    )
    places = np.arange(len(classes))
    figure = Figure(figsize=(5.2, 1.4 + 0.32 * len(classes)), layout="constrained")
    axes = figure.add_subplot()
    axes.barh(places - 0.2, auroc, 0.4, color=BLUE, label="AUROC")
    axes.barh(places + 0.2, precision, 0.4, color=GREY, label="average precision")
    named = zip(classes, per_class["support"], strict=True)
    names = [f"{fitted(name, LABEL, 8)} ({support:,.0f})" for name, support in named]
    axes.set_yticks(places, names, parse_math=False)
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.set_xlabel("%")
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
    figure.legend(frameon=False, fontsize=7.5, loc="outside lower center", ncols=2)
    return figure


def write(
    folder: Path, split: str, metrics: Mapping[str, float], details: Mapping[str, Any], confusion: np.ndarray | None
) -> list[Path]:
    """Writes ``SPLIT.json`` and the pictures of what there is in it, each as PNG and as PDF.

    ``SPLIT-reliability``, or, where each class has answers of its own, ``SPLIT-classes``; ``SPLIT-confusion``, and its
    numbers as CSV. Returns them. Raises UserError where they cannot be written; then none of them is changed.
    """
    classes, places = details["classes"], {}

    def add(ending: str, content: bytes) -> None:
        places[folder / f"{split}{ending}"] = content

    def draw(what: str, figure: Figure) -> None:
        for ending, content in pictures(figure, DPI).items():
            add(f"-{what}{ending}", content)

    add(".json", f"{to_json({'split': split, 'metrics': metrics, **details})}\n".encode())
    if details["reliability"]:
        draw("reliability", draw_reliability(details["reliability"], metrics["ece"]))
    elif details["per_class"].keys() >= {*BARS}:
        draw("classes", draw_classes(details["per_class"], classes))
    if confusion is not None:
        add("-confusion.csv", _as_csv(confusion, classes).encode())
        draw("confusion", draw_confusion(confusion.tolist(), classes))
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    write_together(places)
    return list(places)


def _as_csv(confusion: np.ndarray, classes: Sequence[str]) -> str:
    file = io.StringIO()
    rows, names = csv.writer(file), [csv_cell(name) for name in classes]
    rows.writerow(["true class", *names])
    rows.writerows([name, *row] for name, row in zip(names, confusion.tolist(), strict=True))
    return file.getvalue()


def write_result(run: Path, result: Mapping[str, Any]) -> Path | None:
    """Writes what ``result.json`` says of the test split into the run's ``evaluation``; None where it says nothing.

    Raises UserError where that is not what a run writes.
    """
    details = checked(result, run / "result.json")
    if details is None:
        return None
    confusion = details["confusion"]
    write(
        run / "evaluation",
        "test",
        result["metrics"]["test"],
        details,
        None if confusion is None else np.array(confusion),
    )
    return run / "evaluation"

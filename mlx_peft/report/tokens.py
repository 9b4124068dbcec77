"""What fewer tokens gain and cost: images a second, operations and accuracy, as a table, as CSV and as a picture."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING, Literal

from mlx_peft.artifacts.reduced import Accuracy
from mlx_peft.checks.bench_tokens import ANSWER, TRAIN, Settings, Speed
from mlx_peft.checks.busy import Others
from mlx_peft.config.tokens import NONE
from mlx_peft.core.text import csv_cell
from mlx_peft.core.writing import disk_errors, write_together
from mlx_peft.report.blocks import Columns
from mlx_peft.report.drawing import COLOURS, pictures
from mlx_peft.report.format import MISSING
from mlx_peft.tasks.registry import figures

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PANEL, DPI = 3.6, 200
"""Inches of a panel; dots an inch."""
TRAINED = {False: "off the shelf", True: "trained with it"}
LOOKS: dict[bool, Literal["--", "-"]] = {False: "--", True: "-"}
"""How a line is drawn."""


def table(settings: Settings, speeds: Sequence[Speed], others: Others, accuracies: Sequence[Accuracy] = ()) -> str:
    """A row for each reducer: images a second and how many times the plain model's, operations, and accuracy."""
    kinds = list(dict.fromkeys((one.backend, one.what) for one in speeds))
    trained = [kind for kind in TRAINED if any(one.trained == kind for one in accuracies)]
    called = _called(accuracies[0]) if accuracies else ""
    numbers = [
        "GFLOPs, inference", "GFLOPs, training", *(f"{backend}, {what}, images/s" for backend, what in kinds),
        *(f"{called}, {TRAINED[kind]} (%)" for kind in trained),
    ]  # fmt: skip
    rows = []
    for reducer, each in _by_reducer(speeds).items():
        flops = {one.what: f"{one.flops / 1e9:.2f}" for one in each.values()}
        fast = [f"{each[kind].images_per_second:.1f} ({each[kind].times:.2f})" for kind in kinds]
        good = [_percent(accuracies, reducer, kind) for kind in trained]
        rows.append([reducer, flops[ANSWER], flops[TRAIN], *fast, *good])
    setting = (
        f"{settings.model['name']}, {settings.batch_size} images a batch, float32; LoRA r {settings.rank} on qkv, "
        f"proj, fc1 and fc2; {settings.rounds} rounds in turn, {others}. Images a second at the median "
        "round, and how many times the plain model's, the median of the rounds'. FLOPs of the model's products, an "
        "image; an addition and a multiplication are two"
    )
    return f"{setting}\n\n{Columns(('tokens', *numbers), numbers).table(rows)}"


def to_csv(speeds: Sequence[Speed], accuracies: Sequence[Accuracy] = ()) -> str:
    """A row for each reducer, backend, and what was timed."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    names = [f"{kind} {what}" for kind in TRAINED.values() for what in ("mean", "s.d.", "runs")]
    writer.writerow(
        ["tokens", "backend", "what", "images/s", "fastest images/s", "times", "flops", "split", "metric", *names]
    )
    for one in speeds:
        found = {kind: _values(accuracies, one.reducer, kind) for kind in TRAINED}
        good = [cell for values in found.values() for cell in _spread(values)]
        numbers = [f"{one.images_per_second:.2f}", f"{one.fastest:.2f}", f"{one.times:.3f}", f"{one.flops:.0f}"]
        measured = [accuracies[0].split, accuracies[0].metric] if accuracies else ["", ""]
        writer.writerow(map(csv_cell, [one.reducer, one.backend, one.what, *numbers, *measured, *good]))
    return file.getvalue()


def draw(speeds: Sequence[Speed], accuracies: Sequence[Accuracy]) -> dict[str, bytes]:
    """Accuracy against images a second, or, where no accuracy is known, images a second against operations.

    A panel for each backend and what was timed; a line for each kind of reducer, dashed where it was put into a model
    that was trained without; the plain model is a star.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    kinds = list(dict.fromkeys((one.backend, one.what) for one in speeds))
    families = list(dict.fromkeys(_family(one.reducer) for one in speeds if one.reducer != NONE))
    colours = dict(zip(families, COLOURS, strict=False))
    figure = Figure(figsize=(PANEL * len(kinds), PANEL + 0.4), layout="constrained", facecolor="white")
    for axes, kind in zip(figure.subplots(1, len(kinds), squeeze=False)[0], kinds, strict=True):
        own = [one for one in speeds if (one.backend, one.what) == kind]
        if accuracies:
            _accuracy(axes, own, accuracies, colours)
        else:
            _speed(axes, own, colours)
        axes.set_title(", ".join(kind), fontsize=9)
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25, linewidth=0.6)
    lines = {family: Line2D([], [], color=colour, marker="o", markersize=4) for family, colour in colours.items()}
    lines["all tokens"] = Line2D([], [], color="black", marker="*", linestyle="")
    if accuracies:
        lines |= {called: Line2D([], [], color="0.4", linestyle=LOOKS[kind]) for kind, called in TRAINED.items()}
    figure.legend(lines.values(), lines.keys(), frameon=False, fontsize=8, loc="outside lower center", ncols=len(lines))
    return pictures(figure, DPI)


def write(
    out: Path, settings: Settings, speeds: Sequence[Speed], others: Others, accuracies: Sequence[Accuracy] = ()
) -> list[Path]:
    """Writes ``tokens.md``, ``.csv``, ``.png`` and ``.pdf`` into a folder. Returns what was written.

    Raises UserError where they cannot be written; then none of them is changed.
    """
    files = {
        out / "tokens.md": f"{table(settings, speeds, others, accuracies)}\n".encode(),
        out / "tokens.csv": to_csv(speeds, accuracies).encode(),
    } | {out / f"tokens{ending}": content for ending, content in draw(speeds, accuracies).items()}
    with disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    write_together(files)
    return list(files)


def _accuracy(axes: Axes, speeds: Sequence[Speed], accuracies: Sequence[Accuracy], colours: Mapping[str, str]) -> None:
    axes.set_xlabel("images a second", fontsize=9)
    axes.set_ylabel(f"{_called(accuracies[0])} (%)", fontsize=9)
    for family, colour in colours.items():
        for trained, look in LOOKS.items():
            points = []
            for one in speeds:
                values = _values(accuracies, one.reducer, trained)
                if _family(one.reducer) == family and values:
                    points.append((one.images_per_second, 100 * mean(values), 100 * (_deviation(values) or 0.0)))
            if points:
                x, y, around = zip(*sorted(points), strict=True)
                axes.errorbar(x, y, around, color=colour, linestyle=look, marker="o", markersize=4, capsize=2)
    for one in speeds:
        if one.reducer == NONE and (values := _values(accuracies, NONE, False)):
            axes.plot(one.images_per_second, 100 * mean(values), color="black", marker="*", markersize=10)


def _speed(axes: Axes, speeds: Sequence[Speed], colours: Mapping[str, str]) -> None:
    axes.set_xlabel("GFLOPs an image", fontsize=9)
    axes.set_ylabel("images a second", fontsize=9)
    for family, colour in colours.items():
        points = sorted((one.flops / 1e9, one.images_per_second) for one in speeds if _family(one.reducer) == family)
        axes.plot(*zip(*points, strict=True), color=colour, marker="o", markersize=4)
    for one in speeds:
        if one.reducer == NONE:
            axes.plot(one.flops / 1e9, one.images_per_second, color="black", marker="*", markersize=10)
    axes.set_ylim(bottom=0)


def _called(accuracy: Accuracy) -> str:
    """``test top-1``."""
    return f"{accuracy.split} {figures().get(accuracy.metric, accuracy.metric)}"


def _by_reducer(speeds: Sequence[Speed]) -> dict[str, dict[tuple[str, str], Speed]]:
    found: dict[str, dict[tuple[str, str], Speed]] = {}
    for one in speeds:
        found.setdefault(one.reducer, {})[one.backend, one.what] = one
    return found


def _family(reducer: str) -> str:
    """``tome`` of ``tome r=13``."""
    return reducer.partition(" ")[0]


def _values(accuracies: Sequence[Accuracy], reducer: str, trained: bool) -> tuple[float, ...]:
    return next((one.values for one in accuracies if (one.reducer, one.trained) == (reducer, trained)), ())


def _deviation(values: Sequence[float]) -> float | None:
    return stdev(values) if len(values) > 1 else None


def _percent(accuracies: Sequence[Accuracy], reducer: str, trained: bool) -> str:
    """``97.22 ± 0.10``."""
    values = _values(accuracies, reducer, trained)
    if not values:
        return MISSING
    deviation = _deviation(values)
    return f"{100 * mean(values):.2f}" + ("" if deviation is None else f" ± {100 * deviation:.2f}")


def _spread(values: Sequence[float]) -> list[str]:
    """Mean, standard deviation and number, as cells."""
    if not values:
        return ["", "", "0"]
    deviation = _deviation(values)
    return [f"{mean(values):.6f}", "" if deviation is None else f"{deviation:.6f}", str(len(values))]

"""A simulated quantisation as a person reads it: accuracy before and after, and the error layer by layer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from mlx_peft.artifacts.simulate import Report, Simulated
from mlx_peft.core.text import counted
from mlx_peft.report.blocks import Columns
from mlx_peft.report.format import MISSING, decimal, percent
from mlx_peft.tasks.metrics import Metrics


def lines(report: Report) -> list[str]:
    """The whole report, in Markdown."""
    images = counted(round(report.before["count"]), f"{report.split} image")
    found = [f"Quantisation simulated in float32 on {report.backend}: {report.run}, {images}"]
    for seen in dict.fromkeys(one.images for one in report.after if one.images):
        calibrated = counted(seen.count, "training image")
        found.append(f"Calibrated on {calibrated}, seed {seen.seed} (sha256 {seen.sha256[:12]})")
    found += ["", *accuracies(report)]
    for one in report.after:
        for what, errors in (("weights", one.weights), ("activations", one.activations)):
            if errors:
                found += ["", f"{title(one)}: SQNR of {what} in dB", "", *matrix(errors)]
    return found


def title(one: Simulated) -> str:
    """``W8A8 (simulated), repq, log_sqrt2 softmax``"""
    simulation = one.simulation
    how = f", {calibration(one)}, {simulation.softmax_codes} softmax" if one.images else ""
    return f"{simulation.name} (simulated){how}"


def calibration(one: Simulated) -> str:
    """Its name, with the percentile where there is one."""
    name = one.simulation.calibration
    return f"{name} {one.simulation.percentile:g}" if name == "percentile" else name


def accuracies(report: Report) -> list[str]:
    """One row for the run as it is, one for each simulation."""
    before, split, task = report.before, report.split, report.task
    first, same = task.leading(before), f"{task.agreement} (%)"
    measures = [f"{split} {task.figures[first]} (%)"] if first in task.figures else []

    def measured(metrics: Metrics) -> list[str]:
        return [*(percent(metrics[first]) for _ in measures), decimal(metrics["loss"], 4)]

    headings = ["", "calibration", "softmax", *measures, f"{split} loss", same, "change of logits (%)"]
    rows = [["float32", MISSING, MISSING, *measured(before), MISSING, MISSING]]
    for one in report.after:
        how = [calibration(one), one.simulation.softmax_codes] if one.images else [MISSING, MISSING]
        changes = [percent(one.agreement), percent(one.logits)]
        rows.append([f"{one.simulation.name} simulated", *how, *measured(one.metrics), *changes])
    return Columns(headings, numeric=headings[3:]).aligned(rows).split("\n")


def matrix(errors: Mapping[str, float]) -> list[str]:
    """A row for each block, a column for each layer or operand."""
    blocks: dict[str, dict[str, float]] = {}
    for path, decibels in errors.items():
        _, block, part = path.split(".", 2)
        blocks.setdefault(block, {})[part.partition(".")[2]] = decibels
    columns = list(next(iter(blocks.values())))
    headings = ["block", *columns]
    rows = [[block, *(decimal(row[column]) for column in columns)] for block, row in blocks.items()]
    return Columns(headings, numeric=headings).aligned(rows).split("\n")


def document(report: Report) -> dict[str, Any]:
    """For JSON; an error of nothing, which is infinitely many decibels, is null."""

    def finite(errors: Mapping[str, float]) -> dict[str, float | None]:
        return {name: decibels if math.isfinite(decibels) else None for name, decibels in errors.items()}

    return {
        "run": report.run,
        "split": report.split,
        "backend": report.backend,
        "simulated": True,
        "before": report.before,
        "after": [
            {
                "name": one.simulation.name,
                "simulation": one.simulation.model_dump(mode="json") | {"softmax": one.simulation.softmax_codes},
                "calibrated_on": one.images and asdict(one.images),
                "metrics": one.metrics,
                "logits": one.logits,
                "agreement": one.agreement,
                "sqnr": {"weights": finite(one.weights), "activations": finite(one.activations)},
            }
            for one in report.after
        ],
    }

"""What a page shows of a run when it is asked for: its curves, its confusion matrix, its notes, its configuration."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mlx_peft.core.errors import UserError
from mlx_peft.core.text import UNSEEN, printable, printable_lines
from mlx_peft.report.details import checked
from mlx_peft.report.gather import FinishedRun
from mlx_peft.tasks.registry import figures, leading_metrics

MOST_CLASSES = 40
"""With more classes the pairs that are mistaken most often stand in the place of the matrix, so many of them."""
MOST_POINTS = 200
"""Of a longer curve so many epochs are kept, evenly spread."""
LARGEST = 2**16
"""Of a longer configuration so many bytes are shown."""


def details(runs: Sequence[FinishedRun]) -> str:
    """As JSON that may stand inside a script's element: ``runs`` in their order, and what several of them share."""
    configs: dict[str, int] = {}
    classes: dict[tuple[str, ...], int] = {}
    read: dict[str, str | None] = {}
    found = [_run(run, configs, classes, read) for run in runs]
    text = json.dumps(
        {"runs": found, "configs": [*configs], "classes": [*classes]}, separators=(",", ":"), ensure_ascii=False
    )
    text = UNSEEN.sub(lambda match: json.dumps(match[0])[1:-1], text)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _run(
    run: FinishedRun, configs: dict[str, int], classes: dict[tuple[str, ...], int], read: dict[str, str | None]
) -> dict[str, Any]:
    config = _config(run, read)
    notes = run.result.get("notes")
    return {
        "seed": "" if run.value("seed") is None else f"seed: {run.value('seed')}\n",
        "config": None if config is None else configs.setdefault(config, len(configs)),
        "curves": _curves(run),
        "notes": [printable(str(note)) for note in notes] if isinstance(notes, list) else [],
        **_confusion(run, classes),
    }


def _curves(run: FinishedRun) -> list[list[Any]]:
    called = figures()
    keys = {f"val_{name}": f"validation {called[name]} (%)" for name in leading_metrics()}
    keys |= {"val_loss": "validation loss", "train_loss": "training loss"}
    found = []
    for key, title in keys.items():
        if curve := run.curve(key):
            kept = curve[:: max(1, -(-len(curve) // MOST_POINTS))]
            scale = 100 if title.endswith("(%)") else 1
            found.append([title, [epoch for epoch, _ in kept], [float(f"{scale * value:.5g}") for _, value in kept]])
    return found


def _confusion(run: FinishedRun, classes: dict[tuple[str, ...], int]) -> dict[str, Any]:
    try:
        said = checked(run.result, Path("result.json"))
    except UserError as error:
        return {"notes": [printable(str(error))]}
    if said is None or said["confusion"] is None:
        return {}
    names = tuple(map(printable, said["classes"]))
    if len(names) <= MOST_CLASSES:
        return {"confusion": said["confusion"], "classes": classes.setdefault(names, len(classes))}
    counts = np.array(said["confusion"], float)
    np.fill_diagonal(counts, 0)
    order = np.argsort(-counts, axis=None, kind="stable")[:MOST_CLASSES]
    pairs = [np.unravel_index(place, counts.shape) for place in order.tolist()]
    return {"confused": [[names[row], names[column], int(counts[row, column])]
                         for row, column in pairs if counts[row, column]]}  # fmt: skip


def _config(run: FinishedRun, read: dict[str, str | None]) -> str | None:
    """The configuration without its seed and without where things lay: the same for runs that differ in no more."""
    if run.configuration is not None and run.configuration in read:
        return read[run.configuration]
    text = None if run.folder is None else _read(run.folder / "config.yaml")
    if run.configuration is not None:
        read[run.configuration] = text
    return text


def _read(path: Path) -> str | None:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            lines = file.read(LARGEST).splitlines()
    except OSError:
        return None
    end = next((at for at, line in enumerate(lines) if line.startswith("found:")), len(lines))
    kept = [line for line in lines[:end] if not line.startswith(("seed:", "#"))]
    return printable_lines("\n".join(kept))

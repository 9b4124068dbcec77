"""What a page shows of a run when it is asked for: its curves, its confusion matrix, its notes, its configuration."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from mlx_peft.core.errors import UserError
from mlx_peft.core.text import UNSEEN, printable
from mlx_peft.report.details import checked
from mlx_peft.report.gather import FinishedRun
from mlx_peft.tasks.registry import figures, leading_metrics
from mlx_peft.training.run import FREE

MOST_CLASSES = 40
"""With more classes the pairs that are mistaken most often stand in the place of the matrix, so many of them."""
MOST_POINTS = 200
"""Of a longer curve so many epochs are kept, evenly spread."""
PLAIN = re.compile(r"[A-Za-z][\w./+-]*")
"""Text that YAML takes as it is; but for NOT_TEXT."""
NOT_TEXT = ("true", "false", "null", "yes", "no", "on", "off")
WINDOWS = re.compile(r"[A-Za-z]:[\\/]")


def details(runs: Sequence[FinishedRun]) -> str:
    """As JSON that may stand inside a script's element: ``runs`` in their order, and what several of them share."""
    configs: dict[str, int] = {}
    classes: dict[tuple[str, ...], int] = {}
    told: dict[str, str | None] = {}
    found = [_run(run, configs, classes, told) for run in runs]
    text = json.dumps(
        {"runs": found, "configs": [*configs], "classes": [*classes]}, separators=(",", ":"), ensure_ascii=False
    )
    text = UNSEEN.sub(lambda match: json.dumps(match[0])[1:-1], text)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _run(
    run: FinishedRun, configs: dict[str, int], classes: dict[tuple[str, ...], int], told: dict[str, str | None]
) -> dict[str, Any]:
    config = _config(run, told)
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


def _config(run: FinishedRun, told: dict[str, str | None]) -> str | None:
    """The configuration without its seed and without where things lay: the same for runs that differ in no more.

    None where it could not be read as one: what else a file of its name says is nobody's business.
    """
    key = run.configuration
    if key is not None and key in told:
        return told[key]
    text = _as_yaml(run.settings) if run.settings else None
    if key is not None:
        told[key] = text
    return text


def _as_yaml(settings: Mapping[str, Any]) -> str:
    """Settings by dotted key as YAML, sections within sections; of a path the last part."""
    lines: list[str] = []
    above: tuple[str, ...] = ()
    for key, value in settings.items():
        if key == "seed" or key in FREE or key.startswith(tuple(f"{free}." for free in FREE)):
            continue
        *sections, name = key.split(".")
        shared = next((at for at, part in enumerate(sections) if above[at : at + 1] != (part,)), len(sections))
        lines += [f"{'  ' * at}{sections[at]}:" for at in range(shared, len(sections))]
        lines.append(f"{'  ' * len(sections)}{name}: {_scalar(value)}")
        above = tuple(sections)
    return "\n".join(lines)


def _scalar(value: Any) -> str:
    """A value in a line; YAML reads JSON too."""
    if isinstance(value, str):
        text = PurePath(value).name if value.startswith(("/", "~", "\\")) or WINDOWS.match(value) else value
        if PLAIN.fullmatch(text) and text.lower() not in NOT_TEXT:
            return text
        value = text
    return printable(json.dumps(value, ensure_ascii=False))

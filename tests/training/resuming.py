"""Runs of the fake backend that end early, and what is the same of two that end alike."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mlx_peft.training.progress import Silent, StepEvent
from mlx_peft.training.run import RunFolder, read_metrics
from mlx_peft.training.train import train

TIMINGS = ("images_per_second", "seconds")


class Watcher(Silent):
    """Keeps the notes, and raises at a step or an epoch."""

    def __init__(self, at: int | None = None, error: BaseException | None = None) -> None:
        self.at, self.error, self.notes = at, error, list[str]()

    def note(self, text: str) -> None:
        self.notes.append(text)

    def step(self, event: StepEvent) -> None:
        if event.step == self.at:
            raise self.error or RuntimeError("stop here")


def outcome(out: Path) -> dict[str, Any]:
    lines = [{k: v for k, v in line.items() if k not in TIMINGS} for line in read_metrics(out / "metrics.jsonl")]
    result = json.loads((out / "result.json").read_text())
    adapter = {file.name: file.read_bytes() for file in (out / "adapter").iterdir()}
    return {"lines": lines, "adapter": adapter, "result": {k: result[k] for k in ("run_id", "metrics", "selected")}}


def begun(engine: SimpleNamespace, at: int = 9, **options: Any) -> RunFolder:
    """A run that an error ended after some steps."""
    with pytest.raises(RuntimeError):
        train(engine.experiment(**options), engine.out, progress=Watcher(at))
    return RunFolder(engine.out)

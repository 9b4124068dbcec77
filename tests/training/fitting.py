"""The training loop on the fake backend, and what it tells."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from mlx_peft.config.schema import Experiment
from mlx_peft.training.checkpoint import Position
from mlx_peft.training.feed import Feed
from mlx_peft.training.fit import fit
from mlx_peft.training.progress import EpochEvent, Silent, StepEvent
from mlx_peft.training.resume import stands
from mlx_peft.training.run import RunFolder, read_metrics
from mlx_peft.training.stop import StopSignal

IDENTITY = {"run_id": "1", "splits": {"train": {"sha256": "ab"}}}
TIMINGS = ("images_per_second", "seconds")


class Watcher(Silent):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.steps: list[StepEvent] = []
        self.epochs: list[EpochEvent] = []
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def step(self, event: StepEvent) -> None:
        self.steps.append(event)

    def epoch(self, event: EpochEvent) -> None:
        self.epochs.append(event)


def start(
    engine: SimpleNamespace,
    folder: RunFolder,
    experiment: Experiment,
    *,
    trainer: Any = None,
    watcher: Silent | None = None,
    stop: StopSignal | None = None,
    feed: Feed | None = None,
    identity: dict[str, Any] = IDENTITY,
) -> Position:
    trainer, progress = trainer or engine.trainer(), watcher or Silent()
    feed = feed or engine.feed(experiment, engine.dataset())
    return fit(
        trainer,
        experiment,
        feed,
        folder,
        stands(folder, trainer, experiment, feed.steps, identity, progress),
        identity=identity,
        progress=progress,
        stop=stop or StopSignal(),
    )


def untimed(path: Path) -> list[dict[str, float]]:
    return [{key: value for key, value in line.items() if key not in TIMINGS} for line in read_metrics(path)]

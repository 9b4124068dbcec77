"""What a run tells whoever watches it: the events, and the watcher that stays silent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from mlx_peft.tasks.metrics import Metrics


@dataclass(frozen=True)
class StepEvent:
    """An optimiser step is done. Steps and epochs count from 1, over the whole run."""

    step: int
    steps: int
    epoch: int
    epochs: int
    loss: float
    lr: float
    images_per_second: float
    peak_bytes: int
    logged: bool
    """Whether the step is one of every ``log_every`` that ``metrics.jsonl`` records."""


@dataclass(frozen=True)
class EpochEvent:
    """An epoch is trained and, where there is a validation split, evaluated."""

    epoch: int
    epochs: int
    train_loss: float
    val: Metrics | None
    best: bool
    """Whether this epoch would be selected if it were the last one."""
    seconds: float
    """The time of training, without that of the evaluation."""


class Progress(Protocol):
    """A watcher. It is called from the thread that trains, between steps, so it had better be quick."""

    def note(self, text: str) -> None:
        """One plain sentence for a person: what was replaced on loading, where a run goes on."""
        ...

    def opening(self, what: str, done: int, total: int | None) -> None:
        """So many images of a data set are looked at before anything is done with them, as ``data.looking`` does."""
        ...

    def start(self, step: int, steps: int, epochs: int) -> None:
        """Training begins, with ``step`` of ``steps`` already done: more than 0 after a resume."""
        ...

    def step(self, event: StepEvent) -> None: ...

    def evaluating(self, split: str) -> None:
        """The evaluation of ``val`` or ``test`` begins."""
        ...

    def epoch(self, event: EpochEvent) -> None: ...


class Silent:
    """The watcher of a run that nobody watches."""

    def note(self, text: str) -> None: ...

    def opening(self, what: str, done: int, total: int | None) -> None: ...

    def start(self, step: int, steps: int, epochs: int) -> None: ...

    def step(self, event: StepEvent) -> None: ...

    def evaluating(self, split: str) -> None: ...

    def epoch(self, event: EpochEvent) -> None: ...

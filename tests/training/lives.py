"""Runs that are killed: ``lives.py anywhere OUT SEED...``, ``lives.py points OUT EPOCHS STEP``. It prints how often."""

from __future__ import annotations

import os
import random
import signal
import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest
from fake_backend import install, make_dataset, make_experiment
from killing import die_at, events, life

from mlx_peft.tasks import single_label_metrics
from mlx_peft.tasks.metrics import Evaluation
from mlx_peft.training.train import train

LIVES = 6


def few_metrics(patch: pytest.MonkeyPatch) -> None:
    """Of the metrics the loss and the accuracy, by which an epoch is the best: the others take most of a life's time,
    and are what they are in any life."""
    patch.setattr(single_label_metrics, "measure", lambda *_: Evaluation({}, None, {}, {}))


def training(out: Path, prepare: Callable[[], None] = lambda: None, epochs: int = 2) -> Callable[[], None]:
    """Starts or resumes a run."""

    def work() -> None:
        prepare()
        train(make_experiment(epochs=epochs, checkpoint_every=4, log_every=1), out, resume=True)

    return work


def anywhere(out: Path, seeds: list[int]) -> int:
    """For each seed a run that is killed in whatever it does, again and again; the last life is left in peace."""
    whole, kills = events(training(out / "whole")), 0
    for seed in seeds:
        chance, folder = random.Random(seed), out / str(seed)
        for _ in range(LIVES):
            event = chance.randrange(whole)
            kills += life(training(folder, lambda event=event: die_at(event)))  # type: ignore[misc]
        life(training(folder))
    return kills


def at_points(out: Path, epochs: int, step: int) -> int:
    """A run for one in so many calls that touch the disk: killed just before it, and resumed."""
    for point in count(0, step):
        folder = out / str(point)
        if not life(training(folder, lambda point=point: die_before(point), epochs)):  # type: ignore[misc]
            return point // step
        life(training(folder, epochs=epochs))
    raise AssertionError


def die_before(point: int) -> None:
    """Arranges a SIGKILL before one of this process's calls, counted from 0, that touch the disk."""
    calls = count()

    def deadly(function: Callable[..., object]) -> Callable[..., object]:
        def wrapped(*args: object, **options: object) -> object:
            if next(calls) == point:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **options)

        return wrapped

    for name in ("fsync", "replace", "mkdir"):
        setattr(os, name, deadly(getattr(os, name)))


if __name__ == "__main__":
    install(pytest.MonkeyPatch(), make_dataset())
    few_metrics(pytest.MonkeyPatch())
    os.fsync = lambda file: None  # most of the time; what a killed process wrote is not lost without it
    place = Path(sys.argv[2])
    training(place / "first")()  # which imports what a run needs: once here, and not in each life
    numbers = [*map(int, sys.argv[3:])]
    print(anywhere(place, numbers) if sys.argv[1] == "anywhere" else at_points(place, *numbers))

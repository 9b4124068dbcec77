"""Runs that are killed: ``lives.py times OUT SEED`` or ``lives.py points OUT``. Prints how many kills there were.

Each life is a fork of this process, which does nothing else: that is cheap, and nothing outlives a kill.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest
import sklearn.metrics  # noqa: F401 - which a run imports at its first evaluation: once here, and not in each life
from fake_backend import FakeTrainer, install, make_dataset, make_experiment

from mlx_peft.training.train import train

STEP = 0.03
LIFE = 0.15
"""Seconds that a step takes and that a life may last: no twelve steps can be done in fewer than three lives."""


def life(out: Path, lasting: float | None = None, prepare: Callable[[], None] | None = None) -> bool:
    """Starts or resumes a run, to its end or a SIGKILL: after ``lasting`` seconds, or what ``prepare`` arranges.

    Returns whether it was killed. An error of the run is the end of the program.
    """
    if not (child := os.fork()):
        try:
            if prepare:
                prepare()
            train(make_experiment(epochs=2, checkpoint_every=4, log_every=1), out, resume=True)
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    if lasting is not None:
        time.sleep(lasting)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        sys.exit("a life ended in an error")
    return os.WIFSIGNALED(status)


def at_random_times(out: Path, seed: int) -> int:
    """One run, slowed down so that it takes many lives; the last one is left in peace."""
    rng = random.Random(seed)
    step = FakeTrainer.train_step

    def slowly(self: FakeTrainer, *batch: object, **options: object) -> object:
        time.sleep(STEP)
        return step(self, *batch, **options)  # type: ignore[arg-type]

    FakeTrainer.train_step = slowly  # type: ignore[method-assign, assignment]
    kills = sum(life(out, lasting=rng.uniform(0, LIFE)) for _ in range(10))
    life(out)
    return kills


def at_every_point(out: Path) -> int:
    """A run for each call that touches the disk: killed just before it, and resumed."""
    for point in count():
        folder = out / str(point)
        if not life(folder, prepare=lambda point=point: die_before(point)):  # type: ignore[misc]
            return point
        life(folder)
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
    place = Path(sys.argv[2])
    print(at_random_times(place, int(sys.argv[3])) if sys.argv[1] == "times" else at_every_point(place))

"""What a run of many epochs gathers: nothing. ``tests/bench/scale.py soak`` has both backends, and 20,000 steps."""

from __future__ import annotations

import os
import threading
from types import SimpleNamespace

import pytest

from mlx_peft.config.schema import Experiment
from mlx_peft.training.progress import EpochEvent, Silent
from mlx_peft.training.train import train

SETTLED, EPOCHS = 3, 12


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="only Linux lists what a process has open")
def test_checkpoints_tensorboard_and_validation_leave_nothing_open(engine: SimpleNamespace) -> None:
    found: list[tuple[int, int, int]] = []

    class Watching(Silent):
        def epoch(self, event: EpochEvent) -> None:
            with open("/proc/self/maps") as maps:
                found.append((threading.active_count(), len(os.listdir("/proc/self/fd")), len(maps.readlines())))

    values = engine.experiment(epochs=EPOCHS, checkpoint_every=3, log_every=1).model_dump()
    train(Experiment.model_validate(values | {"track": ["tensorboard"]}), engine.out, progress=Watching())
    settled, after = found[SETTLED - 1], found[SETTLED:]
    assert len(after) == EPOCHS - SETTLED
    for now in after:
        threads, files, mappings = (many - few for many, few in zip(now, settled, strict=True))
        assert (threads <= 1, files, mappings <= 8) == (True, 0, True)  # a thread may just be ending; the heap may grow

"""A run that is killed with SIGKILL, wherever, and resumed ends as one that never was."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hanging import HUNG
from training.lives import few_metrics

from mlx_peft.training.run import read_metrics
from mlx_peft.training.train import train

SEEDS = ("0", "1", "2")

TIMINGS = ("images_per_second", "seconds")


def outcome(run: Path) -> dict[str, Any]:
    """All of a finished run that does not depend on the clock."""
    result = json.loads((run / "result.json").read_text())
    return {
        "result": {key: value for key, value in result.items() if key not in ("time", "memory")},
        "metrics": [
            {key: value for key, value in line.items() if key not in TIMINGS}
            for line in read_metrics(run / "metrics.jsonl")
        ],
        "adapter": {file.name: file.read_bytes() for file in (run / "adapter").iterdir()},
        "best": (run / "checkpoint" / "best.safetensors").read_bytes(),
        "files": {file.name for file in run.iterdir()},
    }


def lives(*arguments: str) -> int:
    """The number of kills in ``lives.py``."""
    script = Path(__file__).with_name("lives.py")
    path = os.pathsep.join([str(script.parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])  # of fake_backend
    command, variables = [sys.executable, str(script), *arguments], os.environ | {"PYTHONPATH": path}
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=HUNG)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.fixture
def expected(engine: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """The outcome of the same run in one piece."""

    def whole(epochs: int = 2) -> dict[str, Any]:
        few_metrics(monkeypatch)
        train(engine.experiment(epochs=epochs, checkpoint_every=4, log_every=1), engine.out)
        return outcome(engine.out)

    return whole


def test_killed_anywhere(tmp_path: Path, expected: Callable[..., dict[str, Any]]) -> None:
    assert lives("anywhere", str(tmp_path), *SEEDS) >= 3 * len(SEEDS)
    undisturbed = expected()
    for name in ("whole", *SEEDS):
        assert outcome(tmp_path / name) == undisturbed, f"seed {name}"


@pytest.mark.parametrize(("epochs", "checkpoints", "step"), [(1, 2, 2), pytest.param(2, 5, 1, marks=pytest.mark.slow)])
def test_killed_around_every_call_that_touches_the_disk(
    tmp_path: Path, expected: Callable[..., dict[str, Any]], epochs: int, checkpoints: int, step: int
) -> None:
    """The second epoch puts in the place of what the first one wrote what it writes alike. Every day at every second
    call."""
    kills = lives("points", str(tmp_path / "killed"), str(epochs), str(step))
    # Three for each checkpoint, and more for the folder, the best epochs, the adapter and the result.
    assert kills > 3 * checkpoints // step
    undisturbed = expected(epochs)
    for point in range(0, kills * step, step):
        assert outcome(tmp_path / "killed" / str(point)) == undisturbed, f"killed at point {point}"

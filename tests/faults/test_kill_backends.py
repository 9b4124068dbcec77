"""Real training, killed with SIGKILL at arbitrary steps and resumed, ends with the same adapter bytes."""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import get_args

import pytest
from faults.run_training import METHODS

from mlx_peft.config.methods import Method

SCRIPT = Path(__file__).with_name("run_training.py")
PATIENCE = 300  # seconds that a life may take on a slow machine


def start(backend: str, method: str, out: Path) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, SCRIPT, backend, method, out], stderr=subprocess.PIPE)


def lines(out: Path) -> int:
    metrics = out / "metrics.jsonl"
    return metrics.read_bytes().count(b"\n") if metrics.exists() else 0


def killed_and_resumed(backend: str, method: str, out: Path, lives: int, seed: int) -> int:
    """Kills each life after some more lines of metrics than it found, a line a step; lets the last one finish."""
    chance, kills = random.Random(seed), 0
    for _ in range(lives):
        process, target = start(backend, method, out), lines(out) + chance.randint(2, 40)
        deadline = time.monotonic() + PATIENCE
        while process.poll() is None and lines(out) < target and time.monotonic() < deadline:
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        kills += process.returncode == -signal.SIGKILL
    process = start(backend, method, out)
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, errors.decode()
    return kills


def adapter(out: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted((out / "adapter").iterdir())}


def check(backend: str, tmp_path: Path, lives: int, seed: int, method: str = "pissa") -> None:
    whole = start(backend, method, tmp_path / "whole")
    assert whole.wait(timeout=PATIENCE) == 0
    kills = killed_and_resumed(backend, method, tmp_path / "parts", lives, seed)
    assert kills >= lives // 2, "the run ended before it could be killed often enough"
    assert adapter(tmp_path / "parts") == adapter(tmp_path / "whole")


@pytest.mark.parametrize("backend", ["mlx", "torch"])
def test_three_lives(backend, tmp_path):
    check(backend, tmp_path, lives=2, seed=0)


@pytest.mark.slow
@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("backend", ["mlx", "torch"])
def test_many_lives(backend, tmp_path, seed):
    check(backend, tmp_path, lives=8, seed=seed + 1)


def test_every_method_is_among_those_that_are_killed():
    known = {kind.model_fields["name"].default for kind in get_args(get_args(Method)[0])}
    assert {options["method"]["name"] for options in METHODS.values()} == known


@pytest.mark.slow
@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("backend", ["mlx", "torch"])
def test_every_method(backend, tmp_path, method):
    check(backend, tmp_path, lives=3, seed=7, method=method)

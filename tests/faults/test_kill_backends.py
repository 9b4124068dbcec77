"""Real training, killed with SIGKILL at arbitrary places and resumed, ends with the same adapter bytes."""

import os
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
from faults.run_training import METHODS
from hanging import HUNG

from mlx_peft.config.methods import Method

SCRIPT = Path(__file__).with_name("run_training.py")


def adapter(out: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted((out / "adapter").iterdir())}


def check(backend: str, tmp_path: Path, lives: int, seed: int, method: str = "pissa") -> None:
    path = os.pathsep.join([str(SCRIPT.parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])  # of killing
    command = [sys.executable, SCRIPT, backend, method, tmp_path, str(lives), str(seed)]
    variables = os.environ | {"PYTHONPATH": path}
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=HUNG)
    assert done.returncode == 0, done.stderr
    assert adapter(tmp_path / "parts") == adapter(tmp_path / "whole")


@pytest.mark.parametrize("backend", ["mlx", pytest.param("torch", marks=pytest.mark.slow)])
def test_three_lives(backend, tmp_path):
    """torch is killed every day too, in ``distributed/test_ranks.py``, and ends with these bytes after a signal in
    ``test_resume_adalora.py``."""
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

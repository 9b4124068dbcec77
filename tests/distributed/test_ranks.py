"""Several processes train what one trains, whatever happens to them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from distributed.ranks import SETTINGS
from halves import daily
from hanging import HUNG

from mlx_peft.training.run import read_metrics

ROUNDING = 1e-5
"""Relative: float32 sums of the same rows in another order, over 32 steps at most."""

SHORT, LONG = (4, 1, ["lora", "accumulated", "adalora"]), (8, 10, [*SETTINGS])
"""Epochs, of four steps each, how often a run is killed, and kinds of runs: in every run of the tests, and in the slow
one."""

KILLED, USER_ERROR, INTERRUPTED = -signal.SIGKILL, 2, 130


def play(backend: str, folder: Path, epochs: int, kills: int, kinds: list[str]) -> dict[str, Any]:
    """What ``ranks.py`` answers: of each of its plays the statuses of the processes that it started."""
    script = Path(__file__).with_name("ranks.py")
    path = os.pathsep.join([str(script.parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, str(script), backend, str(folder), str(epochs), str(kills), *kinds],
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=HUNG,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def told(folder: Path) -> str:
    return "\n".join(f"{file.name}: {file.read_text()}" for file in sorted(folder.glob("*.txt")))


def losses(run: Path) -> dict[int, float]:
    """By step; each step stands once in the metrics."""
    steps = [(line["step"], line["loss"]) for line in read_metrics(run / "metrics.jsonl") if "loss" in line]
    assert len(steps) == len(dict(steps))
    return dict(steps)


def must_be_the_same(run: Path, undisturbed: Path, rounding: float = ROUNDING) -> None:
    found, expected = losses(run), losses(undisturbed)
    assert list(found) == list(expected)
    np.testing.assert_allclose([*found.values()], [*expected.values()], rtol=rounding)
    metrics, others = (json.loads((one / "result.json").read_text())["metrics"] for one in (run, undisturbed))
    for split in ("val", "test"):
        assert metrics[split]["count"] == others[split]["count"]
        assert metrics[split]["loss"] == pytest.approx(others[split]["loss"], rel=rounding)


@pytest.mark.parametrize("backend", daily(["mlx", "torch"], "mlx"))
@pytest.mark.parametrize(
    ("epochs", "kills", "kinds"),
    [pytest.param(*SHORT, id="short"), pytest.param(*LONG, id="long", marks=pytest.mark.slow)],
)
def test_several_processes_train_what_one_trains(
    epochs: int, kills: int, kinds: list[str], backend: str, tmp_path: Path
) -> None:
    """One test, since loading a backend takes longer than all of the runs."""
    statuses = play(backend, tmp_path, epochs, kills, kinds)
    assert len(statuses["killed"]["killed"]) == kills
    assert list(losses(tmp_path / "1" / "lora")) == list(range(1, 4 * epochs + 1))
    they_are_equal(tmp_path, statuses, kinds)
    for check in (those_that_are_killed_lose_nothing, none_waits_for_ever, all_stop_where_one_does):
        check(tmp_path, statuses)


def they_are_equal(folder: Path, statuses: dict[str, Any], kinds: list[str]) -> None:
    assert statuses["equal"] == {"one": [0], "two": [0, 0]}, told(folder)
    for name in kinds:
        must_be_the_same(folder / "2" / name, folder / "1" / name)
        memory = [json.loads((folder / size / name / "result.json").read_text())["memory"] for size in ("1", "2")]
        assert memory[1]["process_bytes"] > 1.5 * memory[0]["process_bytes"]  # that of both
    assert (folder / "two.1.txt").read_text() == ""
    # Processes are parts of a batch.
    must_be_the_same(folder / "2" / "lora", folder / "1" / "accumulated", rounding=0)
    trained, other = (folder / run / "adapter/adapter_model.safetensors" for run in ("2/lora", "1/accumulated"))
    assert trained.read_bytes() == other.read_bytes()


def those_that_are_killed_lose_nothing(folder: Path, statuses: dict[str, Any]) -> None:
    """Whichever is killed, wherever."""
    for pair in statuses["killed"]["killed"]:
        assert sorted(pair) == [KILLED, USER_ERROR], told(folder)
    assert statuses["killed"]["ended by three"] == [0, 0, 0], told(folder)
    must_be_the_same(folder / "killed", folder / "1" / "lora")


def none_waits_for_ever(folder: Path, statuses: dict[str, Any]) -> None:
    """For one that is alive and does not answer."""
    assert statuses["hung"] == {"hung": [USER_ERROR, KILLED], "ended by one": [0]}, told(folder)
    (error,) = [line for line in (folder / "hung.0.txt").read_text().splitlines() if line.startswith("error:")]
    assert "another process of the run has ended, or does not answer" in error
    must_be_the_same(folder / "hung", folder / "1" / "lora")


def all_stop_where_one_does(folder: Path, statuses: dict[str, Any]) -> None:
    """With a checkpoint."""
    assert statuses["stopped"] == {"stopped": [INTERRUPTED, INTERRUPTED], "ended": [0]}, told(folder)
    must_be_the_same(folder / "stopped", folder / "1" / "adalora")


@pytest.mark.slow
def test_torchrun_starts_processes_again_which_go_on(tmp_path: Path) -> None:
    script = Path(__file__).with_name("again.py")
    path = os.pathsep.join([str(script.parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--max-restarts", "1"]
    done = subprocess.run(
        [*launcher, str(script), str(tmp_path)],
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=HUNG,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert list(losses(tmp_path / "run")) == list(range(1, 33))

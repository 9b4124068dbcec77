"""A study whose driver, or whose runs, are killed at random moments ends as one to which nothing happened."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from hanging import HUNG
from studies.graphs import Inside, Notes

from mlx_peft.config import suite
from mlx_peft.studies.graph import Graph
from mlx_peft.studies.ready import Checker
from mlx_peft.studies.record import Before, StudyRecord, read_record
from mlx_peft.studies.sweep import Sweep
from mlx_peft.training.run import RunFolder

SCRIPT = Path(__file__).with_name("slowly.py")
KILLS = 10
FEW: dict[str, Any] = {
    "base": "base.yaml",
    "tune": {"axes": {"train.optimizer.lr": [0.01, 0.1]}},
    "runs": [{"name": "few", "then": [{"name": "fewer", "tokens": {"name": "tome", "r": 1}}]}],
}
ONE = [{"name": "one"}]
MANY = FEW | {"seeds": [0, 1, 2], "runs": [*FEW["runs"], {"name": "more", "set": {"data.batch_size": 4}}]}


class Studies:
    """Makes studies in folders of their own, and kills them."""

    def __init__(self, place: Path, values: dict[str, Any], engine: SimpleNamespace) -> None:
        self.place, self.file = place, place / "study.yaml"
        base = engine.experiment(epochs=4, checkpoint_every=3).model_dump(mode="json")
        (place / "base.yaml").write_text(yaml.safe_dump(base))
        self.file.write_text(yaml.safe_dump(values))
        self.random = random.Random(0)
        self.drivers: list[subprocess.Popen[bytes]] = []

    def driver(self, how: str, name: str) -> subprocess.Popen[bytes]:
        path = os.pathsep.join([str(SCRIPT.parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])
        said = open(self.place / f"{name}.log", "ab")  # noqa: SIM115
        command = [sys.executable, str(SCRIPT), "drive", how, str(self.place / name), str(self.file)]
        with said:
            process = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": path}, stderr=said, stdout=said)
        self.drivers.append(process)
        return process

    def ended(self, how: str, name: str) -> Path:
        """A study made to its end."""
        ended = self.driver(how, name).wait(HUNG)
        assert ended == 0, (self.place / f"{name}.log").read_text()
        return self.place / name

    def whole(self) -> Path:
        """A study made in this process, to which nothing happens."""
        out = self.place / "whole"
        graph = Graph(suite.load(self.file), Checker(out), Before({}, {}))
        for _ in Sweep(graph, out, Inside(), Notes()).run():
            pass
        return out

    def driver_killed(
        self, how: str, kills: int, within: tuple[float, float], *, at_work: bool = False, ends: bool = True
    ) -> Path:
        """A study whose driver is killed so many times, each within so many seconds of its beginning, or of that of
        another run, and goes on."""
        for _ in range(kills):
            before = len(begun(self.place / "killed"))
            driver = self.driver(how, "killed")
            while at_work and len(begun(self.place / "killed")) == before and driver.poll() is None:
                time.sleep(0.01)
            time.sleep(self.random.uniform(*within))
            driver.kill()
            driver.wait()
        return self.ended(how, "killed") if ends else self.place / "killed"

    def runs_killed(self, how: str, kills: int, within: tuple[float, float]) -> Path:
        """A study of whose runs so many are killed, one after another."""
        driver, out, done = self.driver(how, "killed"), self.place / "killed", 0
        while done < kills and driver.poll() is None:
            time.sleep(self.random.uniform(*within))
            done += self.kill_one(out)
        assert driver.wait(HUNG) == 0, [node.error for node in must_read(out).nodes]
        assert done == kills
        return out

    def kill_one(self, out: Path) -> bool:
        """Kills a process of a run that has come to a checkpoint: one that never does has failed."""
        for file in sorted((out / "begun").glob("*"), key=lambda one: one.stat().st_mtime, reverse=True)[:2]:
            begun = json.loads(file.read_text() or "{}")
            folder = RunFolder(out / begun["out"]) if begun else None
            alive = Path(f"/proc/{file.name}").exists()
            if alive and folder is not None and folder.last.exists():
                with suppress(ProcessLookupError):
                    os.kill(int(file.name), signal.SIGKILL)
                    return True
        return False


@pytest.fixture
def studies(tmp_path: Path, engine: SimpleNamespace, dataset: Any) -> Iterator[Any]:
    made: list[Studies] = []

    def of(values: dict[str, Any]) -> Studies:
        made.append(Studies(tmp_path, values, engine))
        return made[-1]

    yield of
    for one in made:
        for driver in one.drivers:
            driver.kill()
            driver.wait()


def must_read(study: Path) -> StudyRecord:
    record = read_record(study)
    assert record is not None
    return record


def outcome(study: Path) -> dict[str, Any]:
    """All of a finished study that does not depend on the clock."""
    record = must_read(study)
    found: dict[str, Any] = {"choices": record.choices}
    for node in record.nodes:
        assert node.folder is not None
        folder = study / node.folder
        result = json.loads((folder / "result.json").read_text())
        for key in ("time", "memory", "environment"):
            result.pop(key, None)
        files = [folder / "predictions.npz", *(folder / "adapter").glob("*")]
        found[f"{node.kind} {node.name}"] = (node.status, result, {file.name: file.read_bytes() for file in files})
    return found


def begun(study: Path) -> list[dict[str, Any]]:
    """Of the processes that computed something for a run: which, and whether it was finished."""
    return [json.loads(text) for file in (study / "begun").glob("*") if (text := file.read_text())]


def must_be_alike(killed: Path, whole: Path) -> None:
    assert outcome(killed) == outcome(whole)
    assert not any(one["finished"] for one in begun(killed)), "a finished run was made again"


@pytest.mark.slow
def test_a_run_that_is_killed_is_taken_up_again_and_so_is_a_study(studies: Any) -> None:
    """Its driver is killed at the trial, and then the final run: the process of each is one more than without. Every
    day a sweep is killed with its run in ``cli/test_sweep.py``, and a run alone in ``test_sweep.py``."""
    made = studies({"base": "base.yaml", "tune": {"axes": {"train.optimizer.lr": [0.1]}}, "seeds": [1], "runs": ONE})
    made.driver_killed("1", 1, (0.0, 0.1), at_work=True, ends=False)
    killed = made.runs_killed("1", 1, (0.0, 0.01))
    must_be_alike(killed, made.whole())
    assert len(begun(killed)) >= 3


@pytest.mark.slow
@pytest.mark.parametrize("how", ["1", "2", "ray"])
def test_a_driver_killed_at_random_moments_ten_times_ends_alike(studies: Any, how: str) -> None:
    made = studies(MANY)
    must_be_alike(made.driver_killed(how, KILLS, (5.0, 20.0) if how == "ray" else (0.5, 4.0)), made.whole())


@pytest.mark.slow
@pytest.mark.parametrize("how", ["1", "2", "ray"])
def test_runs_killed_at_random_moments_ten_times_end_alike(studies: Any, how: str) -> None:
    made = studies(MANY)
    must_be_alike(made.runs_killed(how, KILLS, (0.05, 0.6)), made.whole())

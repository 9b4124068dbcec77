"""Commands whose output cannot be written: they do their work to the end; the status says where an answer is lost.

The trainer is one of a few hundred bytes.
"""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from fake_backend import MODEL
from hanging import HUNG

from mlx_peft.cli import main
from mlx_peft.cli.output import NOTE
from mlx_peft.config.schema import Experiment
from mlx_peft.studies import processes, ready
from mlx_peft.training.train import train

RUN = {"model": MODEL, "method": {"name": "linear"}, "data": {"name": "digits", "batch_size": 8}}
Ended = Callable[..., tuple[int, str]]


@pytest.fixture
def ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: object) -> Ended:
    """Runs a command line as a process would, in an empty folder, its output going to the files that are given.

    Returns its status, and what it wrote to standard error where that went nowhere else.
    """
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(RUN))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("mlx_peft.report.evaluation.write_result", lambda *_: None)  # pictures take their time

    def run(*arguments: str, stdout: int, stderr: int | None = None) -> tuple[int, str]:
        errors = tmp_path / "errors.txt"
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", ["mlx-peft", *arguments])
            patch.setattr(sys, "stdout", os.fdopen(os.dup(stdout), "w"))
            patch.setattr(sys, "stderr", errors.open("w") if stderr is None else os.fdopen(os.dup(stderr), "w"))
            try:
                main()
                status = 0
            except SystemExit as done:
                status = int(done.code or 0)
            sys.stdout.close()
            sys.stderr.close()
        return status, errors.read_text() if stderr is None else ""

    return run


def closed_pipe() -> int:
    read, write = os.pipe()
    os.close(read)
    return write


def full_disk() -> int:
    return os.open("/dev/full", os.O_WRONLY)


def closed_terminal() -> int:
    there, here = pty.openpty()
    os.close(there)
    return here


LOST = {
    "closed pipe": (closed_pipe, "Broken pipe"),
    "full disk": pytest.param(
        full_disk,
        "No space left on device",
        marks=pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a device that is always full"),
    ),
    "closed terminal": (closed_terminal, "Input/output error"),
}


@pytest.mark.parametrize(("opened", "why"), LOST.values(), ids=LOST)
def test_a_run_outlives_what_it_prints_to(ended: Ended, opened: Callable[[], int], why: str) -> None:
    out = opened()
    status, _ = ended("train", "run.yaml", "train.log_every=1", "--out", "run", stdout=out, stderr=out)
    os.close(out)
    assert status == 0
    assert json.loads(Path("run/result.json").read_text())["status"] == "finished"
    (line,) = Path("run", NOTE).read_text().splitlines()
    assert f"could not be written ({why})" in line


def test_a_sweep_outlives_what_it_prints_to(ended: Ended, monkeypatch: pytest.MonkeyPatch, engine: Any) -> None:
    def made(command: object, order: processes.Order, *rest: object) -> processes.Reply:
        train(Experiment.model_validate(order["experiment"]), Path(order["out"]), test=order["test"])
        return processes.Reply(0)

    monkeypatch.setattr(processes, "work", made)
    monkeypatch.setattr(ready, "open_dataset", lambda config, watch=None: engine.dataset())
    Path("suite.yaml").write_text(yaml.safe_dump({"base": "run.yaml", "seeds": [0, 1]}))
    out = closed_pipe()
    assert ended("sweep", "suite.yaml", "--out", "runs", stdout=out, stderr=out) == (0, "")
    os.close(out)
    assert len(Path("runs", NOTE).read_text().splitlines()) == 1
    runs = json.loads(Path("runs/study.json").read_text())["nodes"]
    assert [run["status"] for run in runs] == ["finished", "finished"]


@pytest.mark.parametrize(
    ("opened", "status", "said"),
    [(closed_pipe, 141, ""), (full_disk, 2, "error: standard output cannot be written: No space left on device\n")],
)
def test_an_answer_that_is_lost_fails_the_command_once_its_work_is_done(
    ended: Ended, opened: Callable[[], int], status: int, said: str
) -> None:
    out = opened()
    done, errors = ended("train", "run.yaml", "--out", "run", "--json", stdout=out)
    assert (done, errors[len(errors) - len(said) :]) == (status, said)
    assert Path("run/result.json").exists()
    assert ended("eval", "run", "--out", "figures", stdout=out) == (status, said)
    os.close(out)
    assert any(Path("figures").iterdir())


def test_files_that_are_closed_are_no_other_one() -> None:
    """With file 2 closed, the next file that is opened would have its number, and all that libraries complain of."""
    script = (
        "import os, sys\nfrom mlx_peft.cli.output import check_output, tolerant\n"
        "with tolerant():\n    print('dropped', file=sys.stderr)\n    print('dropped')\n    check_output()\n"
    )
    shell = ["sh", "-c", 'exec "$@" 2>&- >&-', "sh", sys.executable, "-c", script]
    assert subprocess.run(shell, timeout=HUNG).returncode == 1
    script = script.replace("    check_output()\n", "    assert open('/dev/null').fileno() > 2\n")
    assert subprocess.run([*shell[:-1], script], timeout=HUNG).returncode == 0

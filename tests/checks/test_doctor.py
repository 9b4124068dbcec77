"""``doctor``: each fault that is planted is found, with what to do about it, and a sound machine has none of them."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from checks.planted import FAULTS, figures, no_disk, of_extras
from hub_stand_in import standing_in
from huggingface_hub import constants
from typer.testing import CliRunner

from mlx_peft.checks.doctor import examine, machine, packages, places, step
from mlx_peft.checks.doctor.finding import homely
from mlx_peft.checks.doctor.step import Taken
from mlx_peft.cli.app import app
from mlx_peft.core import cores, memory, openblas, threads


def doctor(*words: str) -> Any:
    return CliRunner().invoke(app, ["doctor", *words], obj="mlx", prog_name="mlx-peft")


def findings(*words: str) -> tuple[int, list[dict[str, str]]]:
    done = doctor("--json", *words)
    found = json.loads(done.stdout)
    assert found["passed"] == (done.exit_code == 0)
    assert all(one["remedy"] for one in found["findings"] if one["level"] != "fine")
    return done.exit_code, found["findings"]


@pytest.fixture(autouse=True)
def sound(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine without a fault, whatever this one is, and nothing told of threads."""
    for name in (*threads.WAITING, threads.NUMBER, threads.SETTLED):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(cores, "whole", lambda: 8)
    monkeypatch.setattr(memory, "physical", lambda: 2**35)
    monkeypatch.setattr(openblas, "prefer", lambda: True)
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(total=2**40, free=2**38))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(step, "taken", lambda name: Taken(f"{name} 9.9 (gpu)", 1.0, figures()))


@pytest.mark.parametrize("case", FAULTS)
def test_a_fault_that_is_planted_is_found_with_its_remedy(
    case: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    plant, what, level, said, remedy = FAULTS[case]
    plant(monkeypatch, tmp_path)
    words = [] if what == "hub" else ["--no-hub"]
    status, found = findings(*words, *([] if what.startswith(("step", "agreement")) else ["--no-step"]))
    own = [one for one in found if one["what"] == what and one["level"] == level]
    assert any(re.search(said, one["said"]) and re.search(remedy, one["remedy"]) for one in own), found
    assert status == (level == "fault") or case == "no OpenBLAS"


def test_a_sound_machine_has_none_of_them() -> None:
    status, found = findings("--no-hub")
    assert [one for one in found if one["level"] != "fine"] == []
    assert status == 0
    assert {one["what"] for one in found} >= {"python", "memory", "threads", "packages", "disk", "agreement"}


def test_what_an_extra_that_is_not_installed_asks_for_is_no_fault(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    of_extras(monkeypatch, tmp_path, torch="2.4.0", timm="1.0.20")
    assert [one.level for one in packages.packages()] == ["fine"]


def test_a_token_that_the_hub_does_not_take_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Refusal(Exception):
        response = SimpleNamespace(status_code=401)

    def refused(*_: Any, **__: Any) -> None:
        raise Refusal

    with standing_in(monkeypatch, tmp_path):
        monkeypatch.setattr("huggingface_hub.HfApi.whoami", refused)
        status, found = findings("--no-step")
        assert status == 1
        assert "hf auth login" in found[-1]["remedy"]
        monkeypatch.setattr("huggingface_hub.HfApi.whoami", lambda *_, **__: {"name": "jane"})
        status, found = findings("--no-step")
        assert (status, found[-1]["level"]) == (0, "fine")
        assert "jane" not in json.dumps(found)


def test_for_a_person_each_remedy_stands_below_its_fault(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    no_disk(monkeypatch, tmp_path)
    done = doctor("--no-hub", "--no-step")
    assert done.exit_code == 1
    lines = done.stdout.splitlines()
    at = next(number for number, line in enumerate(lines) if line.startswith("FAULT    disk"))
    assert lines[at + 1].strip().startswith("-> free some")
    assert re.fullmatch(r"\d faults?", lines[-1])


def test_a_check_that_fails_itself_is_a_fault_and_the_others_go_on() -> None:
    def wrong() -> Any:
        raise ZeroDivisionError("no such thing")
        yield

    found = list(examine.examine([("odd", wrong), ("open files", machine.files)]))
    assert [one.what for one in found] == ["odd", "open files"]
    assert "ZeroDivisionError: no such thing" in found[0].said


def test_nothing_names_whose_home_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert homely(tmp_path / "a" / "b") == "~/a/b"
    assert homely(f"{tmp_path}beside") == f"{tmp_path}beside"
    assert homely("/") == "/"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(places.tempfile, "tempdir", str(tmp_path))
    assert str(tmp_path) not in doctor("--no-hub", "--no-step", "--json").stdout


def test_why_a_process_ended_is_its_last_line_or_a_signal() -> None:
    assert step.reason(1, "Traceback\n  File\nImportError: libmlx.so: no such file\n\n") == (
        "ImportError: libmlx.so: no such file"
    )
    assert step.reason(3, "") == "its process ended with status 3"
    assert step.reason(-signal.SIGILL, "noise") == "its process was ended by SIGILL"


def test_a_process_that_hangs_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()

    def hung(*_: Any, **__: Any) -> None:
        raise subprocess.TimeoutExpired("python", step.PATIENCE)

    monkeypatch.setattr(subprocess, "run", hung)
    assert step.taken("torch") == "a step took more than 120 s"


@pytest.mark.slow
def test_the_step_itself_is_taken_and_both_backends_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    """As it is, in processes, on a machine that may do much else."""
    monkeypatch.undo()
    monkeypatch.setattr(step, "PATIENCE", 1200.0)
    found = list(step.steps())
    assert [one.what for one in found if one.level == "fine"] == ["step in mlx", "step in torch", "agreement"]

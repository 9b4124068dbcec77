"""``doctor``: each fault that is planted is found, with what to do about it, and a sound machine has none of them."""

from __future__ import annotations

import ctypes
import json
import re
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hub_stand_in import standing_in
from huggingface_hub import constants
from typer.testing import CliRunner

from mlx_peft.checks.doctor import examine, machine, packages, places, step
from mlx_peft.checks.doctor.finding import homely
from mlx_peft.checks.doctor.step import Taken
from mlx_peft.cli.app import app
from mlx_peft.core import cores, memory, openblas, threads

Planted = Callable[[pytest.MonkeyPatch, Path], None]


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


def figures(change: float = 0.0) -> dict[str, np.ndarray]:
    return {"losses": np.array([2.0, 2.0, 1.9 + change]), "head.weight": np.ones((2, 3), np.float32)}


def package(monkeypatch: pytest.MonkeyPatch, folder: Path, name: str, version: str, *needs: str) -> None:
    """Installs a package, by what it says of itself alone."""
    place = folder / "site" / f"{name}-{version}.dist-info"
    place.mkdir(parents=True)
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}", *(f"Requires-Dist: {n}" for n in needs)]
    (place / "METADATA").write_text("\n".join(lines) + "\n")
    monkeypatch.syspath_prepend(str(folder / "site"))


def old_mlx(patch: pytest.MonkeyPatch, folder: Path) -> None:
    package(patch, folder, "mlx", "0.20.1")


def torchvision_of_another_torch(patch: pytest.MonkeyPatch, folder: Path) -> None:
    package(patch, folder, "torchvision", "0.19.1", "torch==2.4.1")
    package(patch, folder, "torch", "2.6.0")


def two_builds(patch: pytest.MonkeyPatch, folder: Path) -> None:
    package(patch, folder, "torchvision", "0.19.1+cpu", "torch==2.4.1")
    package(patch, folder, "torch", "2.4.1+cu124")


def something_missing(patch: pytest.MonkeyPatch, folder: Path) -> None:
    patch.setattr(packages, "installed", lambda name, real=packages.installed: None if name == "pillow" else real(name))


def no_openblas(patch: pytest.MonkeyPatch, folder: Path) -> None:
    def none(name: str, mode: int = 0) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    patch.undo()
    patch.setattr(sys, "platform", "linux")
    patch.setattr(ctypes, "CDLL", none)


def no_compiler(patch: pytest.MonkeyPatch, folder: Path) -> None:
    patch.setattr(sys, "platform", "linux")
    patch.setattr(shutil, "which", lambda name: None)


def one_thread(patch: pytest.MonkeyPatch, folder: Path) -> None:
    patch.setenv("OMP_NUM_THREADS", "1")


def too_many_threads(patch: pytest.MonkeyPatch, folder: Path) -> None:
    patch.setenv("OMP_NUM_THREADS", "64")


def little_memory(patch: pytest.MonkeyPatch, folder: Path) -> None:
    patch.setattr(memory, "physical", lambda: 2**31)


def few_addresses(patch: pytest.MonkeyPatch, folder: Path) -> None:
    limits = {resource.RLIMIT_AS: 2**30}
    patch.setattr(resource, "getrlimit", lambda kind: (limits.get(kind, resource.RLIM_INFINITY),) * 2)


def few_files(patch: pytest.MonkeyPatch, folder: Path) -> None:
    limits = {resource.RLIMIT_NOFILE: 64}
    patch.setattr(resource, "getrlimit", lambda kind: (limits.get(kind, resource.RLIM_INFINITY),) * 2)


def no_cache(patch: pytest.MonkeyPatch, folder: Path) -> None:
    """A file lies where the folder would be made, which holds for root too."""
    (folder / "hub").write_text("")


def no_disk(patch: pytest.MonkeyPatch, folder: Path) -> None:
    patch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(total=2**40, free=2**20))


def old_python(patch: pytest.MonkeyPatch, folder: Path) -> None:
    patch.setattr(machine.platform, "python_version", lambda: "3.8.19")


def translated_python(patch: pytest.MonkeyPatch, folder: Path) -> None:
    patch.setattr(machine, "translated", lambda: True)


def silent_hub(patch: pytest.MonkeyPatch, folder: Path) -> None:
    patch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    patch.setattr(constants, "HF_HUB_OFFLINE", False)


def offline(patch: pytest.MonkeyPatch, folder: Path) -> None:
    patch.setattr(constants, "HF_HUB_OFFLINE", True)


def different(patch: pytest.MonkeyPatch, folder: Path) -> None:
    patch.setattr(step, "taken", lambda name: Taken(name, 1.0, figures(0.01 * (name == "mlx"))))


def broken(patch: pytest.MonkeyPatch, folder: Path) -> None:
    patch.setattr(
        step, "taken", lambda name: "its process was ended by SIGILL" if name == "mlx" else Taken(name, 1, {})
    )


def none_installed(patch: pytest.MonkeyPatch, folder: Path) -> None:
    patch.setattr(step, "available", list)


def on_the_cpu(patch: pytest.MonkeyPatch, folder: Path) -> None:
    patch.setattr(step, "DRIVER", folder)
    patch.setattr(step, "taken", lambda name: Taken(f"{name} 9.9 (cpu)", 1.0, figures()))


FAULTS: dict[str, tuple[Planted, str, str, str, str]] = {
    "an old MLX": (old_mlx, "packages", "fault", r"mlx 0\.20\.1 is here, and >=0\.31", "pip install -U 'mlx>=0.31"),
    "a package that is missing": (something_missing, "packages", "fault", "pillow is missing", "install -U 'pillow"),
    "torchvision for another torch": (
        torchvision_of_another_torch, "torch", "fault", r"torchvision 0\.19\.1 is built for torch==2\.4\.1, and",
        "pip install -U torch torchvision",
    ),
    "torch and torchvision of two builds": (two_builds, "torch", "fault", "of two builds", "whl/cu124"),
    "no OpenBLAS": (no_openblas, "BLAS", "warning", "no OpenBLAS", "apt install libopenblas0-pthread"),
    "no compiler": (no_compiler, "compiler", "fault", r"no g\+\+", r"apt install g\+\+"),
    "one thread": (one_thread, "threads", "warning", "8 cores free, and OMP_NUM_THREADS=1", "unset OMP_NUM_THREADS"),
    "too many threads": (too_many_threads, "threads", "warning", "OMP_NUM_THREADS=64 has more", "unset OMP_NUM"),
    "little memory": (little_memory, "memory", "warning", r"2\.0 GiB of memory", "train.accumulate"),
    "few addresses": (few_addresses, "memory", "fault", r"may have 1\.0 GiB: MLX needs", "ulimit -v unlimited"),
    "few files": (few_files, "open files", "warning", "may have 64", "ulimit -n 4096"),
    "a cache that cannot be written to": (no_cache, "weights", "fault", "cannot be written to", "set HF_HOME"),
    "no disk": (no_disk, "disk", "fault", "1 MiB free", "free some"),
    "a Python that is not supported": (old_python, "python", "fault", r"3\.8\.19 .*; supported: ", "uv venv"),
    "a Python that is translated": (translated_python, "python", "fault", "translated", "Python for arm64"),
    "a hub that is silent": (silent_hub, "hub", "warning", "cannot be reached", "HTTPS_PROXY"),
    "a hub that is not to be asked": (offline, "hub", "warning", "HF_HUB_OFFLINE is set", "unset HF_HUB_OFFLINE"),
    "backends that differ": (different, "agreement", "fault", r"differ by .*e-03 at most \(losses\)", "report it"),
    "a backend that does not work": (broken, "step in mlx", "fault", "SIGILL", "anew: pip install mlx-peft"),
    "no backend": (none_installed, "step", "fault", "neither MLX nor PyTorch", r"pip install 'mlx-peft\[torch\]'"),
    "a GPU that is not used": (on_the_cpu, "step in torch", "warning", "NVIDIA's driver is here", "nvidia-smi"),
}  # fmt: skip
"""What is planted, and what is found: in a word, how bad it is, what is said, and the remedy."""


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

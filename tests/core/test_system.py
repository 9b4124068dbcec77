"""Locks and files on this system, and on one that has what Windows has and lacks what it lacks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from mlx_peft.core import system

HOLD = """
import sys
from mlx_peft.core import system

file = open(sys.argv[1], "ab")
system.lock(file.fileno())
print(1, flush=True)
input()
"""


def bytes_locked(file: int, how: int, count: int) -> None:
    """msvcrt's locking, on a system whose own locks are of bytes too."""
    import fcntl

    assert (how, count) == (2, 1) and os.lseek(file, 0, os.SEEK_CUR) == system.LOCKED
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, count, 0, os.SEEK_CUR)
    except OSError as error:
        raise PermissionError(13, "Permission denied") from error


@pytest.fixture(params=["own", "windows"])
def locking(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "windows":
        monkeypatch.setattr(system.sys, "platform", "win32")
        monkeypatch.setitem(sys.modules, "msvcrt", SimpleNamespace(LK_NBLCK=2, locking=bytes_locked))


@pytest.mark.skipif(os.name == "nt", reason="its own locks are another system's")
@pytest.mark.usefixtures("locking")
def test_a_lock_is_refused_while_another_process_has_it(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    place, windows = tmp_path / "lock", "windows" in request.node.name
    hold = HOLD
    if windows:  # the other process locks as a system does that locks bytes
        hold = HOLD.replace("system.lock(file.fileno())", f"__import__('fcntl').lockf(file, 6, 1, {system.LOCKED})")
    holder = subprocess.Popen(
        [sys.executable, "-c", hold, str(place)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdin and holder.stdout
    assert holder.stdout.readline() == "1\n"
    with open(place, "r+b") as file:
        file.write(b"in it")
        with pytest.raises(BlockingIOError):
            system.lock(file.fileno())
        holder.communicate("\n")
        system.lock(file.fileno())
        system.lock(file.fileno(), wait=True)
        file.seek(0)
        assert file.read() == b"in it"


def test_files_are_read_and_written_at_a_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for lacking in (False, True):
        if lacking:
            monkeypatch.delattr(os, "pread", raising=False)
            monkeypatch.delattr(os, "pwrite", raising=False)
            monkeypatch.delattr(os, "readv", raising=False)
        file = os.open(tmp_path / str(lacking), os.O_RDWR | os.O_CREAT | system.BINARY)
        assert system.write_at(file, b"0123456789", 0) == 10 and system.write_at(file, b"ab", 4) == 2
        assert system.read_at(file, 4, 3) == b"3ab6" and system.read_at(file, 9, 8) == b"89"
        os.lseek(file, 7, os.SEEK_SET)
        buffer = bytearray(5)
        assert system.read_into(file, memoryview(buffer)) == 3 and buffer == b"789\0\0"
        assert system.read_into(file, memoryview(buffer)) == 0
        os.close(file)


WITHOUT = """
import os, signal, sys, types
# What others wrote asks for more of its system: it is there already.
import multiprocessing.util, subprocess, tempfile
import huggingface_hub, jinja2, matplotlib.figure, matplotlib.backends.backend_agg, PIL.Image, psutil, pydantic, re2
import rich.live, rich.progress, safetensors.numpy, scipy.stats, simplejpeg, sklearn.datasets, sklearn.metrics
import torch, typer, yaml

for name in ("fcntl", "resource", "mlx", "mlx.core"):
    sys.modules[name] = None
for module, names in (
    (os, "O_NOFOLLOW O_NONBLOCK O_CLOEXEC pread pwrite readv sysconf sched_getaffinity fork"),
    (signal, "SIGHUP SIGKILL"),
):
    for name in names.split():
        delattr(module, name)
sys.modules["msvcrt"] = types.SimpleNamespace(LK_NBLCK=2, locking=lambda file, how, count: None)
psutil.Process.memory_info = lambda self: types.SimpleNamespace(peak_wset=1)
sys.platform = "win32"

from mlx_peft.cli import torch_main
"""
"""Before the program: a Python that has what Windows has, as far as the package can see."""


LINES = (
    "train quickstart method.name=linear train.epochs=1 --out run",
    "merge run merged",
    "convert run converted --to transformers --no-verify",
    "eval run",
)
RUN = """
for line in sys.argv[1:]:
    sys.argv = ["torch-ref", *line.split()]
    try:
        torch_main()
    except SystemExit as end:
        assert not end.code, f"{line}: {end.code}"
"""


@pytest.mark.slow
def test_a_run_is_trained_and_converted_on_a_system_that_lacks_what_windows_lacks(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WITHOUT + RUN, *LINES]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "converted" / "model.safetensors").is_file()
    assert not [*tmp_path.glob(".*.partial")]

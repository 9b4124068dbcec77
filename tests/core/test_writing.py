"""Staged writing: what is there is whole, what a killed process left is removed, and nothing else is."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mlx_peft.core.errors import UserError
from mlx_peft.core.signals import SUPERVISORS, end, handled
from mlx_peft.core.standing import passage
from mlx_peft.core.writing import (
    LOCK,
    OURS,
    SUFFIX,
    DiskFull,
    in_place_of,
    move,
    new_folder,
    staging,
    write_together,
    write_whole,
)

BEGIN = """
import sys
from pathlib import Path
from mlx_peft.core.writing import new_folder, staging
with {call} as folder:
    (folder / "weights").write_bytes(bytes(1000))
    print("ready", flush=True)
    sys.stdin.read()
"""
"""A process in the middle of writing, until its input ends."""


def begun(call: str, handler: str = "") -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", handler + BEGIN.format(call=call)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout and process.stdout.readline() == "ready\n"
    return process


def killed(call: str) -> None:
    with begun(call) as process:
        process.kill()


def names(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir()}


def test_what_a_killed_process_was_writing_is_removed_by_the_next_one(tmp_path: Path) -> None:
    killed(f"new_folder(Path({str(tmp_path / 'model')!r}))")
    (left,) = names(tmp_path)
    assert left.startswith(".model.")
    with new_folder(tmp_path / "another") as folder:
        assert not (tmp_path / left).exists()
        (folder / "weights").touch()
    assert names(tmp_path) == {"another"}


def test_what_a_living_process_is_writing_is_left_alone(tmp_path: Path) -> None:
    with begun(f"new_folder(Path({str(tmp_path / 'model')!r}))") as process:
        with new_folder(tmp_path / "another"):
            pass
        process.communicate()
    assert process.returncode == 0
    assert names(tmp_path) == {"another", "model"}
    assert names(tmp_path / "model") == {"weights"}


def test_what_is_not_ours_is_left_alone(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / LOCK).write_bytes(OURS)
    place = tmp_path / "place"
    for name, content in {"no-lock": None, "another-lock": b"12345\n", "longer": OURS + b"x"}.items():
        folder = place / f".{name}.12345678{SUFFIX}"
        folder.mkdir(parents=True)
        (folder / "precious").touch()
        if content is not None:
            (folder / LOCK).write_bytes(content)
    (place / f".link.12345678{SUFFIX}").symlink_to(outside)
    (place / f".file.12345678{SUFFIX}").write_bytes(OURS)
    (place / f".pipe.12345678{SUFFIX}").mkdir()
    os.mkfifo(place / f".pipe.12345678{SUFFIX}" / LOCK)
    (place / f"seen.12345678{SUFFIX}").mkdir()
    (place / f"seen.12345678{SUFFIX}" / LOCK).write_bytes(OURS)
    before = {path.relative_to(tmp_path) for path in tmp_path.rglob("*")}
    with new_folder(place / "model"):
        pass
    after = {path.relative_to(tmp_path) for path in tmp_path.rglob("*")}
    assert after == before | {Path("place", "model")}


def test_a_kill_between_the_two_moves_of_a_replacement_loses_nothing(tmp_path: Path) -> None:
    target = tmp_path / "adapter"
    target.mkdir()
    (target / "weights").write_bytes(b"old")
    script = f"""
import os, signal
from pathlib import Path
from mlx_peft.core import writing
move = os.replace
def once(*paths):
    move(*paths)
    os.kill(os.getpid(), signal.SIGKILL)
os.replace = once
with writing.new_folder(Path({str(target)!r}), replaceable={{"weights"}}):
    pass
"""
    assert subprocess.run([sys.executable, "-c", script]).returncode == -signal.SIGKILL
    assert not target.exists()
    with new_folder(tmp_path / "another"):
        pass
    assert (target / "weights").read_bytes() == b"old"
    assert names(tmp_path) == {"adapter", "another"}


def test_an_error_between_the_two_moves_puts_the_old_one_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "adapter"
    target.mkdir()
    (target / "weights").write_bytes(b"old")

    def broken(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("mlx_peft.core.writing.move", broken)
    with pytest.raises(UserError, match="Input/output error"), new_folder(target, replaceable={"weights"}):
        pass
    assert names(tmp_path) == {"adapter"}
    assert (target / "weights").read_bytes() == b"old"


@pytest.mark.parametrize("number", SUPERVISORS)
def test_a_request_to_end_removes_what_was_begun_and_repeating_it_does_not_disturb(
    tmp_path: Path, number: signal.Signals
) -> None:
    script = f"""
import os, signal
from mlx_peft.core import signals, writing
number, remove = signal.Signals({int(number)}), writing.shutil.rmtree
signal.signal(number, signal.SIG_DFL)
def disturbed(path):
    for other in signals.SUPERVISORS:
        os.kill(os.getpid(), other)
    remove(path)
writing.shutil.rmtree = disturbed
listening = signals.handled(signals.end)
listening.__enter__()
"""
    with begun(f"staging(Path({str(tmp_path / 'model')!r}))", script) as process:
        process.send_signal(number)
        assert process.wait() == 128 + number
    assert names(tmp_path) == set()


def test_a_handler_is_there_for_its_block_alone() -> None:
    usual = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        with pytest.raises(SystemExit) as ended, handled(end):
            os.kill(os.getpid(), signal.SIGTERM)
        assert ended.value.code == 128 + signal.SIGTERM
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, usual)


def test_a_disk_without_room_for_all_files_changes_none(tmp_path: Path) -> None:
    files = {tmp_path / name: name.encode() * 100 for name in ("a", "b", "c")}
    write_together(dict.fromkeys(files, b"old"))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (150, limits[1]))
        with pytest.raises(UserError, match=r"/b: cannot be written: File too large"):
            write_together(files | {tmp_path / "b": bytes(200)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == dict.fromkeys("abc", b"old")
    write_together(files)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == files


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_said_without_advice_that_only_a_run_can_follow(tmp_path: Path, code: int) -> None:
    with pytest.raises(DiskFull) as caught, staging(tmp_path / "model"):
        raise OSError(code, os.strerror(code))
    assert str(caught.value) == f"{tmp_path}/model: cannot be written: no space left on the device"
    assert names(tmp_path) == set()


def test_what_is_staged_keeps_its_content_on_the_way(tmp_path: Path) -> None:
    with staging(tmp_path / "parents" / "model.onnx") as folder:
        (folder / "model.onnx").write_bytes(b"graph")
        move(folder / "model.onnx", tmp_path / "parents" / "model.onnx")
        (folder / "rest").touch()
    write_whole(tmp_path / "parents" / "facts", b"{}")
    assert {path.name: path.read_bytes() for path in (tmp_path / "parents").iterdir()} == {
        "model.onnx": b"graph",
        "facts": b"{}",
    }


class TestWhatIsNoFile:
    """A pipe stands for devices too: a test that made one, or replaced one, would need the rights of root."""

    @pytest.fixture(params=["itself", "through a link"])
    def pipe(self, tmp_path: Path, request: pytest.FixtureRequest) -> Path:
        os.mkfifo(tmp_path / "pipe")
        (tmp_path / "link").symlink_to(tmp_path / "pipe")
        return tmp_path / ("pipe" if request.param == "itself" else "link")

    def test_it_is_not_replaced_and_nothing_is_written_beside_it(self, pipe: Path) -> None:
        before = names(pipe.parent)
        with pytest.raises(UserError, match="a pipe is there, and no file"):
            write_whole(pipe, b"")
        with pytest.raises(UserError, match="a pipe is there, and no file"):
            write_together({pipe.with_name("other"): b"", pipe: b""})
        with pytest.raises(UserError, match="a pipe is there, and no file"), staging(pipe):
            pytest.fail("the work began")
        with pytest.raises(OSError, match="a pipe is there"), in_place_of(pipe, pipe.with_name("part")):
            pytest.fail("the work began")
        assert names(pipe.parent) == before and pipe.is_fifo()

    def test_a_device_is_known(self) -> None:
        assert passage(Path(os.devnull)) == "a device"
        assert passage(Path(__file__)) is passage(Path(__file__).parent) is passage(Path("no such file")) is None

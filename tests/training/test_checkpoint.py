"""Checkpoints: whole or not there, and read back as they were."""

from __future__ import annotations

import errno
import os
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_peft.core.errors import UserError
from mlx_peft.core.writing import write_whole
from mlx_peft.training.checkpoint import Position, load_checkpoint, save_checkpoint

TENSORS = {"weight": np.arange(6, dtype=np.float32).reshape(2, 3), "count": np.array(3), "empty": np.zeros((0, 2))}


def test_tensors_and_facts_come_back_bit_for_bit(tmp_path: Path) -> None:
    position = Position(step=7, loss_sum=0.1 + 0.2, best={"top1": 1 / 3, "loss": 0.7, "count": 3})
    save_checkpoint(tmp_path / "last.safetensors", TENSORS, position=asdict(position))
    tensors, facts = load_checkpoint(tmp_path / "last.safetensors")
    assert Position(**facts["position"]) == position
    assert {name: (value.dtype, value.tobytes()) for name, value in tensors.items()} == {
        name: (value.dtype, value.tobytes()) for name, value in TENSORS.items()
    }


@settings(max_examples=30)
@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_sum_of_losses_survives_exactly(tmp_path_factory: pytest.TempPathFactory, value: float) -> None:
    path = tmp_path_factory.mktemp("sums") / "last.safetensors"
    save_checkpoint(path, {}, position=asdict(Position(loss_sum=value)))
    assert load_checkpoint(path)[1]["position"]["loss_sum"] == value


@pytest.mark.parametrize("step", ["write", "fsync", "replace"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_leaves_the_old_file_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, code: int
) -> None:
    path = tmp_path / "last.safetensors"
    write_whole(path, b"old")

    def full(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    if step == "write":
        monkeypatch.setattr("builtins.open", lambda *args: FullFile(path, full))
    else:
        monkeypatch.setattr(os, step, full)
    with pytest.raises(UserError, match=r"last\.safetensors: cannot be written: no space left"):
        write_whole(path, b"new")
    monkeypatch.undo()
    assert {entry.name: entry.read_bytes() for entry in tmp_path.iterdir()} == {"last.safetensors": b"old"}


class FullFile:
    """An open temporary file on a disk that has no room."""

    def __init__(self, path: Path, write: object) -> None:
        self.write = write
        path.with_name(f".{path.name}.tmp").touch()

    def __enter__(self) -> FullFile:
        return self

    def __exit__(self, *_: object) -> None: ...


def test_a_folder_that_may_not_be_written_to_is_the_users_to_mend(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "replace", denied)
    with pytest.raises(UserError, match="cannot be written: Permission denied"):
        write_whole(tmp_path / "last.safetensors", b"new")


@pytest.mark.parametrize("keep", [0, 5, 60, -1])
def test_a_truncated_checkpoint_is_refused_by_name(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "last.safetensors"
    save_checkpoint(path, TENSORS, position=asdict(Position()))
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match=r"last\.safetensors is not a whole checkpoint"):
        load_checkpoint(path)


def test_what_a_killed_process_left_behind_is_written_over(tmp_path: Path) -> None:
    path = tmp_path / "last.safetensors"
    (tmp_path / ".last.safetensors.tmp").write_bytes(b"half a checkpoint, longer than the next")
    write_whole(path, b"new")
    assert {entry.name: entry.read_bytes() for entry in tmp_path.iterdir()} == {"last.safetensors": b"new"}

"""The list of digests beside text files."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from mlx_peft.core.errors import UserError
from mlx_peft.core.sums import LARGEST, SUMS, check_sum, write_with_sums


@pytest.mark.parametrize("mark", [" ", "*"], ids=["text", "binary"])
def test_lists_of_sha256sum_are_read_in_either_mode(mark: str, tmp_path: Path) -> None:
    (tmp_path / "theirs.json").write_bytes(b"{}")
    (tmp_path / SUMS).write_text(f"{hashlib.sha256(b'{}').hexdigest()} {mark}theirs.json\n")
    write_with_sums(tmp_path, {"ours.json": b"[]"})
    assert check_sum(tmp_path / "theirs.json") and check_sum(tmp_path / "ours.json")
    (tmp_path / "theirs.json").write_bytes(b"[]")
    with pytest.raises(UserError, match=r"theirs\.json was damaged or changed"):
        check_sum(tmp_path / "theirs.json")


def test_a_line_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / SUMS).write_text(f"{'0' * 64} - a.json\n")
    with pytest.raises(UserError, match=r"SHA256SUMS\.txt is damaged"):
        check_sum(tmp_path / "a.json")


@pytest.mark.parametrize("name", [SUMS, "a.json"])
def test_nobody_waits_for_a_pipe_in_the_place_of_a_file(name: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(UserError, match=rf"{name} is a pipe, and no file"):
        check_sum(tmp_path / "a.json")


def test_a_list_that_no_folder_has_is_not_read(tmp_path: Path) -> None:
    with open(tmp_path / SUMS, "wb") as file:
        file.truncate(LARGEST + 1)
    with pytest.raises(UserError, match=r"SHA256SUMS\.txt is damaged: it has 16,777,217 bytes"):
        check_sum(tmp_path / "a.json")

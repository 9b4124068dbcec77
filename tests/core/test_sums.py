"""The list of digests beside text files."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from mlx_peft.core.errors import UserError
from mlx_peft.core.sums import SUMS, check_sum, write_with_sums


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

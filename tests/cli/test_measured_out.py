"""``--out`` of commands that measure for long, ``bench tokens`` above all: what cannot be written is refused first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mlx_peft.checks import bench_tokens


def never(*_: Any) -> None:
    raise AssertionError("something was measured")


@pytest.mark.parametrize(
    ("out", "said"),
    [
        ("table.csv", "table.csv: cannot be written: Not a directory"),
        ("table.csv/inside", "table.csv/inside: cannot be written: Not a directory"),
        ("astray", "astray: cannot be written: No such file or directory"),
        ("a" * 300, "cannot be written: File name too long"),
    ],
)
def test_a_place_that_cannot_be_written_is_refused_before_anything_is_measured(
    command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str, said: str
) -> None:
    monkeypatch.setattr(bench_tokens, "run", never)
    (tmp_path / "table.csv").write_text("a user's\n")
    (tmp_path / "astray").symlink_to("nowhere")
    refused = command("bench", "tokens", "tome r=2", "--model", "vit_tiny_patch16_224", "--out", out)
    assert refused.exit_code == 2 and said in refused.stderr.replace("\n", " ")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["astray", "table.csv"]


@pytest.mark.parametrize(
    ("words", "work"),
    [
        (["eval", "run"], "mlx_peft.artifacts.examine.examine_splits"),
        (["combine", "a", "b", "--curve", "3"], "mlx_peft.artifacts.interpolate.interpolate"),
    ],
)
def test_so_it_is_where_images_are_evaluated(
    command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], work: str
) -> None:
    monkeypatch.setattr(work, never)
    (tmp_path / "table.csv").write_text("a user's\n")
    refused = command(*words, "--out", "table.csv")
    assert refused.exit_code == 2 and "table.csv: cannot be written: Not a directory" in refused.stderr


def test_a_new_folder_is_made_only_once_there_is_something_to_write(
    command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench_tokens, "run", never)
    with pytest.raises(AssertionError, match="something was measured"):
        raise command("bench", "tokens", "tome r=2", "--out", "new/folder").exception
    assert not list(tmp_path.iterdir())

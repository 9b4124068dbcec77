"""A few files of a set that is too large to be tried are looked at, and none is decoded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mlx_peft.config import schema
from mlx_peft.data import FileImages, Split, dataset, open_dataset, tried
from mlx_peft.data.heads import LOOKED_AT, strange


def test_files_that_are_no_images_are_noted_on_opening(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(12):
        path = tmp_path / "ab"[number % 2] / f"{number:02}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (9, 9)).save(path)
    for number in (3, 5):
        (tmp_path / "b" / f"{number:02}.png").write_text("<!DOCTYPE html><p>not found")
    (tmp_path / "a" / "04.png").write_text("version https://git-lfs.github.com/spec/v1\n")
    (tmp_path / "a" / "06.png").write_bytes(b"")
    monkeypatch.setattr(tried, "CHECKED", 0)
    monkeypatch.setattr(dataset, "read_image", lambda path: pytest.fail("decoded"))
    found = strange({"train": open_dataset(schema.Data(name="folder", root=tmp_path, split=schema.Split(val=0))).train})
    notes = open_dataset(schema.Data(name="folder", root=tmp_path)).notes
    assert found == notes[: len(found)]
    of = "of the 12 files of train looked at are no images"
    assert notes[:3] == (
        f"2 {of} (b/03.png, b/05.png): a web page, XML or SVG and no image",
        f"1 {of} (a/04.png): a Git LFS pointer and not the file itself: run `git lfs pull`",
        f"1 {of} (a/06.png): empty",
    )


def test_of_many_files_a_few_are_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Path] = []
    monkeypatch.setattr("mlx_peft.data.heads.head_of", lambda path: asked.append(path) or b"\xff\xd8")
    images = FileImages(Path("somewhere"), tuple(f"{number}.jpg" for number in range(100_000)))
    assert strange({"train": Split("train", images, np.zeros(100_000, np.int64))}) == ()
    assert len(asked) == LOOKED_AT
    assert {asked[0].name, asked[-1].name} == {"0.jpg", "99999.jpg"}
    assert strange({"train": Split("train", images.take(np.arange(0)), np.zeros(0, np.int64))}) == ()

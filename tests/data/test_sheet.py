"""The contact sheet shows the images that it says it shows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from mlx_peft.config import schema
from mlx_peft.data import find, open_dataset
from mlx_peft.data.check import survey
from mlx_peft.data.opening import open_entry
from mlx_peft.data.sheet import CLASSES, EACH, PAIRS, TILE, _font, contact_sheet, ending

Save = Callable[..., Path]


def test_the_first_and_last_of_each_class_are_shown() -> None:
    dataset = open_dataset(schema.Data(name="digits", split=schema.Split(val=0)))
    sheet = np.asarray(contact_sheet(survey(dataset, threads=1)))
    height = len(sheet) // 10
    gap = (sheet.shape[1] - EACH * TILE) // (EACH + 1)
    for label in (0, 9):
        rows = np.flatnonzero(dataset.train.labels == label)
        for place, row in ((0, rows[0]), (EACH - 1, rows[-1])):
            expected = np.asarray(Image.fromarray(dataset.train.images.read(row).copy()).resize((TILE, TILE)))
            left = gap + place * (TILE + gap)
            shown = sheet[label * height : (label + 1) * height, left : left + TILE]
            assert any(np.array_equal(shown[top : top + TILE], expected) for top in range(height - TILE + 1))


def test_broken_images_many_classes_and_many_pairs_make_a_sheet_of_bounded_size(tmp_path: Path, save: Save) -> None:
    """Sixty classes, called in several alphabets; each image of train is in test again; one is broken."""
    for number in range(60):
        for split in ("train", "test"):
            save(tmp_path / split / f"класс_{number:02d}_é" / "0.png", number)
    (tmp_path / "train" / "класс_00_é" / "0.png").write_bytes(b"nothing")
    config = schema.Data(name="folder", root=tmp_path, split=schema.Split(val=0))
    found = survey(open_entry(find("folder"), config, decode=False), threads=1)
    assert (len(found.broken), len(found.exact), found.sound) == (1, 59, False)
    sheet = contact_sheet(found)
    strips = CLASSES + PAIRS // (EACH // 2)
    names = 12 * PAIRS // (EACH // 2)  # a line under each row of pairs
    assert sheet.height == pytest.approx(strips * (TILE + 24) + names, abs=strips)
    red = np.asarray(sheet)[: TILE + 24, : TILE + 8].astype(int)
    assert ((red[..., 0] > 150) & (red[..., 1] < 100)).sum() > TILE, "the broken image is a red cross"


@pytest.mark.parametrize(
    "name", ["a.png", "train/cat/" + "a" * 300 + "_0017.png", "猫" * 40, "W" * 40, "\udcff" * 40, ""]
)
def test_the_end_of_a_file_s_name_is_shown_where_the_whole_does_not_fit(name: str) -> None:
    shown = ending(name, TILE)
    assert 0 <= ImageDraw.Draw(Image.new("L", (1, 1))).textlength(shown, _font()) <= TILE
    assert shown == name or name.encode("utf-8", "replace").decode().endswith(shown.removeprefix("…"))
    assert ending("train/cat/" + "a" * 300 + "_0017.png", TILE).endswith("_0017.png")
    assert ending("a.png", TILE) == "a.png"

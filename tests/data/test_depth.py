"""Images of 12 bits in files of 16 get a note; those that use their range do not."""

from __future__ import annotations

import io
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from pictures import tiff
from PIL import Image

from mlx_peft.config import schema
from mlx_peft.data import open_dataset
from mlx_peft.data.dataset import FileImages
from mlx_peft.data.depth import LOOKED_AT, Glance, shallow

TWELVE = "16 bits, of which the upper 4 are not used"


def png(samples: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(samples).save(file, "PNG")
    return file.getvalue()


def noise(bits: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 2**bits, (20, 20)).astype(np.uint16)


def note(folder: Path, *contents: bytes) -> str:
    for number, content in enumerate(contents):
        (folder / f"{number:02}").write_bytes(content)
    return "".join(shallow(FileImages(folder, tuple(f"{number:02}" for number in range(len(contents))))))


@pytest.mark.parametrize("photometric", [0, 1])
def test_12_bits_in_16_get_a_note(tmp_path: Path, photometric: int) -> None:
    assert TWELVE in note(tmp_path, tiff(noise(12), photometric))
    assert TWELVE in note(tmp_path, png(noise(12)))
    assert TWELVE in note(tmp_path, *[png(noise(10))] * 20)


@pytest.mark.parametrize("photometric", [0, 1])
def test_what_uses_its_range_gets_none(tmp_path: Path, photometric: int) -> None:
    assert not note(tmp_path, tiff(noise(16), photometric))
    assert not note(tmp_path, tiff(noise(12), photometric=1, bits=12))
    assert not note(tmp_path, png(noise(12)), png(noise(16)))
    assert not note(tmp_path, png((noise(8) // 20).astype(np.uint8)))
    assert not note(tmp_path, b"no image")
    assert not note(tmp_path)


def test_of_many_images_a_few_are_kept_from_the_first_to_the_last(tmp_path: Path) -> None:
    glance = Glance()
    for number in range(1000):
        glance.add(str(tmp_path / f"{number:03}"))
    kept = [int(Path(image).name) for image in glance._kept]
    assert LOOKED_AT <= len(kept) < 2 * LOOKED_AT and kept[0] == 0 and kept[-1] > 900
    assert len({after - before for before, after in pairwise(kept)}) == 1
    assert not glance.notes()  # none of them is there
    for number in kept:
        (tmp_path / f"{number:03}").write_bytes(png(noise(12)))
    assert any(TWELVE in note for note in glance.notes())


def test_a_set_of_such_images_is_opened_with_the_note(tmp_path: Path) -> None:
    for label in ("x", "y"):
        (tmp_path / label).mkdir()
        for number in range(3):
            (tmp_path / label / f"{number}.png").write_bytes(png(noise(12) + number))
    dataset = open_dataset(schema.Data(name="folder", root=tmp_path, split=schema.Split(val=0)))
    assert any(TWELVE in note for note in dataset.notes)

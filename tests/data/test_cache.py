"""The decoded cache: the same pixels, decoded once; limited, and never half there."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from data.caches import COUNT, data, entries, epoch
from PIL import Image

from mlx_peft.config import schema
from mlx_peft.core.errors import UserError
from mlx_peft.data import cache, cached, dataset, open_dataset
from mlx_peft.data.cache import HEADER, Cache, shrunk


def test_later_epochs_decode_nothing_and_show_the_same_pixels(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = data(root)
    plain = open_dataset(config)
    expected = [epoch(plain, config, number) for number in range(3)]
    opened = cached(plain, config)
    assert epoch(opened, config, 0) == expected[0]
    assert len(entries(root)) == COUNT

    def refuse(path: object) -> None:
        raise AssertionError(f"{path} is decoded again")

    monkeypatch.setattr(dataset, "read_image", refuse)
    assert epoch(opened, config, 1) == expected[1]
    assert epoch(cached(plain, config), config, 2) == expected[2]  # another run
    assert opened.train.sha256 == plain.train.sha256


def test_a_file_that_changed_is_decoded_again_by_the_next_run(root: Path) -> None:
    config = data(root)
    plain = open_dataset(config)
    opened = cached(plain, config)
    path = root / opened.train.images.identifiers[3]
    before = [opened.train.images.read(3) for _ in range(2)][1]
    Image.new("RGB", (before.shape[1], before.shape[0]), "red").save(path)
    assert np.array_equal(opened.train.images.read(3), before)  # one run sees one set of images
    after = cached(plain, config).train.images.read(3)
    assert np.abs(after.astype(int) - (255, 0, 0)).max() < 8


def test_what_was_kept_by_other_rules_of_reading_does_not_count(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = data(root)
    epoch(cached(open_dataset(config), config), config, 0)
    monkeypatch.setattr(cache, "RULES", 0)
    epoch(cached(open_dataset(config), config), config, 0)
    assert len(entries(root)) == 2 * COUNT


def test_an_entry_that_arrives_in_pieces_is_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = np.random.default_rng(0).integers(0, 256, (70, 50, 3), np.uint8)
    Cache(tmp_path, 10**6, None).put("ab" * 20, image)
    whole = os.readv
    monkeypatch.setattr(os, "readv", lambda file, buffers: whole(file, [buffers[0][:999]]))
    found = Cache(tmp_path, 10**6, None).get("ab" * 20)
    assert found is not None
    assert np.array_equal(found, image)


def test_an_entry_that_ends_early_is_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Cache(tmp_path, 10**6, None).put("ab" * 20, np.zeros((4, 4, 3), np.uint8))
    monkeypatch.setattr(os, "readv", lambda file, buffers: 0)
    assert Cache(tmp_path, 10**6, None).get("ab" * 20) is None


def test_a_limited_side_shrinks_larger_images_alike_in_every_epoch_and_where_nothing_is_kept(root: Path) -> None:
    config = data(root, side=40)
    opened = cached(open_dataset(config), config)
    first = epoch(opened, config)
    assert [min(opened.train.images.read(n).shape[:2]) for n in range(COUNT)] == [40] * COUNT
    assert epoch(opened, config) == first
    full = data(root, side=40, gigabytes=1e-6, folder=root.parent / "other")
    assert epoch(cached(open_dataset(full), full), full) == first
    assert not list((root.parent / "other").rglob("*.rgb*"))


@pytest.mark.parametrize(("size", "side", "expected"), [((30, 60), 20, (20, 40)), ((61, 30), 20, (40, 20))])
def test_shrinking_keeps_the_shape(size: tuple[int, int], side: int, expected: tuple[int, int]) -> None:
    image = np.zeros((*size, 3), np.uint8)
    assert shrunk(image, side).shape[:2] == expected
    assert shrunk(image, None) is image
    assert shrunk(image, 30) is image


def test_no_more_is_kept_than_the_limit(root: Path) -> None:
    sizes = 60 * 90 * 3
    config = data(root, gigabytes=5 * sizes / 1e9)
    opened = cached(open_dataset(config), config)
    first = epoch(opened, config)
    kept = entries(root)
    assert 2 <= len(kept) <= 5
    assert sum(path.stat().st_size for path in kept) <= 5 * sizes
    assert epoch(opened, config) == first
    assert entries(root) == kept


def test_room_is_made_on_opening_by_what_was_not_read_for_longest(tmp_path: Path) -> None:
    image = np.zeros((10, 10, 3), np.uint8)
    size = HEADER.size + image.nbytes
    cache = Cache(tmp_path, 20 * size, None)
    keys = [f"{number:040x}" for number in range(20)]
    for age, key in enumerate(keys):
        cache.put(key, image)
        os.utime(cache._place(key), (1e9 - age, 1e9 - age))
    assert Cache(tmp_path, 99 * size, None).get(keys[-1]) is not None  # read again: the youngest now
    again = Cache(tmp_path, 20 * size, None)
    gone = [key for key in keys if again.get(key) is None]
    assert gone == keys[-3:-1]  # down to nine tenths: the longest unread
    again.put("ff" * 20, image)
    assert again.get("ff" * 20) is not None


@pytest.mark.parametrize("most", [0, COUNT])
@pytest.mark.parametrize("damage", ["empty", "short", "header", "pixels", "longer"])
def test_a_damaged_entry_is_decoded_anew_and_replaced(
    root: Path, monkeypatch: pytest.MonkeyPatch, damage: str, most: int
) -> None:
    """Whether it would stay mapped or be read."""
    monkeypatch.setattr(cache, "MAPPED", most)
    config = data(root)
    plain = open_dataset(config)
    expected = epoch(cached(plain, config), config)
    path = entries(root)[0]
    whole = path.read_bytes()
    broken = {
        "empty": b"", "short": whole[:-1], "header": b"XXXX" + whole[4:], "longer": whole + b"x",
        "pixels": whole[:-1] + bytes([whole[-1] ^ 1]),
    }[damage]  # fmt: skip
    path.write_bytes(broken)
    assert epoch(cached(plain, config), config) == expected
    assert path.read_bytes() == whole


def test_a_full_disk_ends_the_keeping_and_not_the_run(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = data(root)
    plain = open_dataset(config)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    assert epoch(cached(plain, config), config) == epoch(plain, config)
    assert not list((root.parent / "cache").rglob("*.rgb*"))


def test_a_folder_that_cannot_be_used_is_refused(root: Path) -> None:
    (root.parent / "cache").write_text("")
    with pytest.raises(UserError, match=r"data\.cache\.folder: .*cache cannot be used"):
        cached(open_dataset(data(root)), data(root))


def test_where_there_are_no_image_files_a_note_says_that_nothing_is_cached(root: Path) -> None:
    config = schema.Data(name="digits", cache={"gigabytes": 1, "folder": root.parent / "cache"})
    plain = open_dataset(config)
    opened = cached(plain, config)
    assert opened.notes == (*plain.notes, "data.cache: not used, since digits has no image files of their own")
    assert opened.train is plain.train
    assert not (root.parent / "cache").exists()
    assert cached(open_dataset(data(root)), data(root)).notes == ()


def test_a_file_that_is_gone_is_named(root: Path) -> None:
    opened = cached(open_dataset(data(root)), data(root))
    (root / opened.train.images.identifiers[0]).unlink()
    with pytest.raises(UserError, match=r"a/.*\.jpg: cannot be read"):
        opened.train.images.read(0)

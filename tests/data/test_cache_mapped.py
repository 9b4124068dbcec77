"""Entries of the decoded cache as arrays of a file that is mapped, and no more of them than may be."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import pytest
from data.caches import COUNT, data, epoch

from mlx_peft.config import schema
from mlx_peft.data import cache, cached, open_dataset
from mlx_peft.data.cache import Cache


def test_whole_images_that_are_mapped_read_only_are_resized_too(root: Path) -> None:
    config = data(root)
    whole = config.model_copy(update={"augment": schema.Augment(crop="random_resized", scale=(1, 1), ratio=(0.2, 5))})
    plain = open_dataset(config)
    opened = cached(plain, config)
    for interpolation in ("bilinear", "bicubic"):
        expected = epoch(plain, whole, 0, interpolation)
        assert epoch(opened, whole, 0, interpolation) == expected
        assert epoch(opened, whole, 0, interpolation) == expected


@pytest.fixture
def maps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each file that is mapped."""
    made: list[int] = []
    original = cache._map

    def counted(file: int) -> np.ndarray:
        made.append(file)
        return original(file)

    monkeypatch.setattr(cache, "_map", counted)
    return made


def test_past_the_most_that_stay_mapped_images_are_read_too(
    root: Path, monkeypatch: pytest.MonkeyPatch, maps: list[int]
) -> None:
    gc.collect()  # caches of other tests no longer count
    monkeypatch.setattr(cache, "MAPPED", COUNT // 2)
    config = data(root).model_copy(update={"threads": 1})
    plain = open_dataset(config)
    opened = cached(plain, config)
    assert [epoch(opened, config, number) for number in range(3)] == [epoch(plain, config, n) for n in range(3)]
    assert len(maps) == COUNT // 2


def test_caches_of_one_process_share_what_may_stay_mapped(
    root: Path, monkeypatch: pytest.MonkeyPatch, maps: list[int]
) -> None:
    gc.collect()
    monkeypatch.setattr(cache, "MAPPED", COUNT // 2)
    config = data(root)
    plain = open_dataset(config)
    first, second = cached(plain, config), cached(plain, config)
    for opened in (first, first, second):
        for number in range(COUNT):
            opened.train.images.read(number)
    assert len(maps) == COUNT // 2
    del first, opened
    gc.collect()
    for number in range(COUNT):
        second.train.images.read(number)
    assert len(maps) == COUNT


@pytest.mark.parametrize("mapped", [True, False])
def test_an_entry_is_read_only_and_the_same_mapped_or_not(tmp_path: Path, mapped: bool) -> None:
    image = np.random.default_rng(0).integers(0, 256, (70, 50, 3), np.uint8)
    Cache(tmp_path, 10**6, None).put("ab" * 20, image)
    found = Cache(tmp_path, 10**6, None).get("ab" * 20, mapped=mapped)
    assert found is not None
    assert np.array_equal(found, image)
    assert not found.flags.writeable

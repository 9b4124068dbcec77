"""Many images looked at: in order, few at a time, by the processors that are free, and watched."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mlx_peft.cli.progress import EVERY, Lines
from mlx_peft.config import schema
from mlx_peft.core import cores
from mlx_peft.data import Dataset, open_dataset
from mlx_peft.data.looking import AHEAD, CHUNK, each


def test_few_rows_wait_however_many_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores, "free", lambda: 3)
    seen, threads, told = list[int](), set[int](), list[tuple[str, int, int]]()

    def look(row: int) -> int:
        seen.append(row)
        threads.add(threading.get_ident())
        return -row

    found = each(look, range(10_000), 2, "looking", lambda *what: told.append(what))
    assert [next(found) for _ in range(5)] == [0, -1, -2, -3, -4]
    assert len(seen) <= (AHEAD * 3 + 1) * CHUNK
    assert list(found) == [-row for row in range(5, 10_000)]
    assert len(threads) <= 3
    assert (told[0], told[-1]) == (("looking", 0, 10_000), ("looking", 10_000, 10_000))
    assert [done for _, done, _ in told] == sorted(done for _, done, _ in told)


def test_what_is_raised_is_raised_at_its_row_and_ends_the_looking() -> None:
    def look(row: int) -> int:
        if row == 200:
            raise ValueError(row)
        return row

    found = each(look, range(100_000), 2, "looking")
    assert [next(found) for _ in range(192)] == list(range(192))
    with pytest.raises(ValueError, match="200"):
        list(found)


@pytest.mark.parametrize("group_by", [None, "duplicates"])
def test_opening_is_watched_and_looks_at_each_image_once(tmp_path: Path, group_by: Any) -> None:
    for number in range(20):
        path = tmp_path / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.random.default_rng(number).integers(0, 256, (8, 8, 3), np.uint8)).save(path)
    config = schema.Data(name="folder", root=tmp_path, split=schema.Split(group_by=group_by))
    told: list[tuple[str, int, int | None]] = []

    def opened() -> Dataset:
        told.clear()
        return open_dataset(config, lambda *what: told.append(what))

    opened()
    assert ("trying the images of train", 20, 20) in told
    assert (("looking for near-duplicates", 20, 20) in told) == (group_by is not None)
    assert ("listing images", 20, None) in told
    assert ("asking for sizes and times", 0, 20) in told
    opened()
    assert {total for what, _, total in told if what.startswith(("trying", "looking"))} == {0}


@pytest.mark.parametrize("name", ["folder", "csv"])
def test_listing_is_watched_too(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """How many there are is not known before the end."""
    monkeypatch.setattr("mlx_peft.data.lists.CHUNK", 2)
    for number in range(6):
        path = tmp_path / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8)).save(path)
    rows = [f"{'ab'[number % 2]}/{number}.png,{'ab'[number % 2]}" for number in range(6)]
    (tmp_path / "list.csv").write_text("\n".join(["image,label", *rows]))
    told: list[tuple[str, int, int | None]] = []
    open_dataset(schema.Data(name=name, root=tmp_path), lambda *what: told.append(what))
    listed = [(done, total) for what, done, total in told if what.startswith(("listing", "looking for the"))]
    assert listed[0] == (0, None)
    assert listed[-1] == (6, None)
    assert [done for done, _ in listed] == sorted(done for done, _ in listed)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    now = [100.0]
    monkeypatch.setattr("mlx_peft.cli.progress.time.monotonic", lambda: now[0])

    def wait(seconds: float) -> None:
        now[0] += seconds

    return wait


def test_a_log_has_rate_and_estimate_from_one_second_on(
    clock: Callable[[float], None], capsys: pytest.CaptureFixture[str]
) -> None:
    lines = Lines()

    def told(done: int, wait: float) -> str:
        clock(wait)
        lines.opening("trying the images of train", done, 10_000)
        return capsys.readouterr().err

    assert told(0, 5) == ""
    assert told(500, 0.5) == ""
    assert told(2_000, 1.5) == "trying the images of train: 2,000 of 10,000, 1,000 images/s, 8.0 s left\n"
    assert told(3_000, 1) == ""
    assert "6,000 of 10,000" in told(6_000, EVERY)
    assert told(10_000, 1).startswith("trying the images of train: 10,000 of 10,000, ")
    assert told(0, 5) == ""
    assert told(10_000, 0.5) == ""


def test_a_log_has_the_rate_of_a_listing_too(
    clock: Callable[[float], None], capsys: pytest.CaptureFixture[str]
) -> None:
    lines = Lines()
    lines.opening("listing images", 0, None)
    clock(2)
    lines.opening("listing images", 80_000, None)
    assert capsys.readouterr().err == "listing images: 80,000, 40,000 images/s\n"

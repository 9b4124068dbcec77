"""A look at every image that is broken off goes on from where it was; one that came to its end is made anew."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mlx_peft.config import schema
from mlx_peft.data import Dataset, dataset, find, looking, read_all
from mlx_peft.data.check import Survey, survey
from mlx_peft.data.opening import open_entry

COUNT, BROKEN = 60, "31.png"
Checked = Callable[..., Survey]


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> schema.Data:
    """Sixty images of two classes, of which one is broken; they are looked at four at a time."""
    monkeypatch.setattr(looking, "CHUNK", 4)
    for number in range(COUNT):
        path = tmp_path / "images" / "ab"[number % 2] / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(number).integers(0, 256, (9, 8, 3), np.uint8)).save(path)
        if path.name == BROKEN:
            path.write_bytes(b"nothing")
    return schema.Data(
        name="folder", root=tmp_path / "images", cache=schema.Cache(folder=tmp_path), split=schema.Split(val=0.2)
    )


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that are decoded."""
    found: list[str] = []
    whole = dataset.read_image
    monkeypatch.setattr(dataset, "read_image", lambda path: found.append(path.name) or whole(path))
    return found


def opened(config: schema.Data) -> Dataset:
    return open_entry(find("folder"), config, decode=False)


def broken_off(config: schema.Data, after: int) -> None:
    """A check that Ctrl-C ends once so many images are done."""

    def watch(what: str, done: int, total: int | None) -> None:
        if done >= after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        survey(opened(config), 1, config, watch)


def test_what_was_read_before_an_interrupt_is_not_read_again(config: schema.Data, names: list[str]) -> None:
    broken_off(config, 40)
    Image.fromarray(np.random.default_rng(COUNT).integers(0, 256, (7, 8, 3), np.uint8)).save(config.root / "a/00.png")
    expected = survey(opened(config), 1).report()
    names.clear()
    told: list[str] = []
    found = survey(opened(config), 1, config, lambda what, done, total: told.append(what)).report()
    assert 20 <= len(names) <= 25
    assert "00.png" in names, "it has changed"
    assert told[-1] == "reading the images that an earlier check did not come to"
    (note,) = set(found.pop("notes")) - set(expected.pop("notes"))
    assert "images were read by an earlier check, which was broken off" in note
    assert found == expected
    names.clear()
    again = survey(opened(config), 1, config)
    assert len(names) == COUNT
    assert not [note for note in again.dataset.notes if "earlier check" in note]


def test_a_broken_image_is_said_by_every_sitting(config: schema.Data, names: list[str]) -> None:
    broken_off(config, COUNT)
    broken_off(config, 1)
    names.clear()
    assert [reason for reason in survey(opened(config), 1, config).reasons.values() if BROKEN in reason]
    assert names == [BROKEN]


def test_a_process_that_is_killed_loses_only_the_last_minutes(
    config: schema.Data, names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It writes down what it found now and then, not only at its end."""
    monkeypatch.setattr(read_all, "EVERY", -1)
    monkeypatch.setattr(read_all.Memory, "keep", keep := Kept(read_all.Memory.keep))
    broken_off(config, 40)
    assert keep.sizes[:3] == [1, 2, 3]


class Kept:
    """How many records were kept, each time."""

    def __init__(self, keep: Callable[..., None]) -> None:
        self.sizes: list[int] = []
        self._keep = keep

    def __get__(self, memory: object, kind: type) -> Callable[..., None]:
        def keep(marks: np.ndarray, records: np.ndarray, among: np.ndarray) -> None:
            self.sizes.append(int(among.sum()))
            self._keep(memory, marks, records, among)

        return keep

"""Parquet files cost what their pages cost: what they repeat is kept once, and what is absurd is refused unread."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from mlx_peft.core.errors import UserError
from mlx_peft.data import Dataset, arrow
from mlx_peft.data.arrow import Table

Open = Callable[..., Dataset]


def encoded(seed: int, side: int = 8) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)).save(file, "PNG")
    return file.getvalue()


def repeated(path: Path, rows: int, images: list[bytes]) -> None:
    """A file whose pages name the images once, and then by their number."""
    numbers = pa.array(np.arange(rows) % len(images), pa.int32())
    image = pa.DictionaryArray.from_arrays(numbers, pa.array(images, pa.binary()))
    table = pa.table({"image": image, "label": np.arange(rows) % 2})
    parquet.write_table(table, path, row_group_size=rows, store_schema=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "set").mkdir()
    return tmp_path / "set"


@pytest.fixture
def opened(folder: Path, opened_as: Open) -> Open:
    def open_set(**options: Any) -> Dataset:
        cache = {"cache": {"folder": folder.parent / "cache"}, "split": {"val": 0}}
        return opened_as("parquet", folder, **cache | options)

    return open_set


def kept(folder: Path) -> list[Path]:
    return sorted((folder.parent / "cache" / "mlx-peft-cache" / "unpacked").iterdir())


def test_an_image_that_is_repeated_is_neither_unpacked_nor_kept_more_than_once(
    folder: Path, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """60,000 rows of one of two images of 12 kB: 700 MB, in a file of 60 kB."""
    rows, images = 60_000, [encoded(n, 64) for n in range(2)]
    repeated(folder / "train.parquet", rows, images)
    assert (folder / "train.parquet").stat().st_size < 10**5
    monkeypatch.setattr("mlx_peft.data.tried.CHECKED", 0)
    pool = pa.default_memory_pool()
    before = pool.max_memory()
    dataset = opened()
    assert pool.max_memory() <= max(before, 2**26)
    assert dataset.train.size == rows
    expected = [np.asarray(Image.open(io.BytesIO(image))) for image in images]
    for row in (0, 1, rows - 1):
        assert np.array_equal(dataset.train.images.read(row), expected[row % 2])
    (path,) = kept(folder)
    assert path.stat().st_size < 20 * rows


def test_what_was_unpacked_is_read_by_the_next_opening(
    folder: Path, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    repeated(folder / "train.parquet", 6, [encoded(n) for n in range(4)])
    first = opened()
    with monkeypatch.context() as patch:
        patch.setattr(Table, "_contents", lambda *_: pytest.fail("unpacked again"))
        patch.setattr("mlx_peft.data.dataset.decode_image", lambda *_: pytest.fail("decoded again"))
        again = opened()
    assert again.train.sha256 == first.train.sha256
    repeated(folder / "train.parquet", 6, [encoded(n) for n in range(5, 9)])
    changed = opened().train.images.read(0)
    assert np.array_equal(changed, np.asarray(Image.open(io.BytesIO(encoded(5)))))
    assert np.array_equal(again.train.images.read(0), np.asarray(Image.open(io.BytesIO(encoded(0))))), "still open"
    assert len(kept(folder)) == 1


@pytest.mark.parametrize("damage", ["empty", "short", "flipped", "of another", "a link"])
def test_what_was_unpacked_and_damaged_is_unpacked_anew(folder: Path, opened: Open, damage: str) -> None:
    repeated(folder / "train.parquet", 6, [encoded(n) for n in range(4)])
    opened()
    (path,) = kept(folder)
    whole = path.read_bytes()
    theirs = folder.parent / "theirs"
    if damage == "a link":
        theirs.write_bytes(whole)
        path.unlink()
        path.symlink_to(theirs)
    else:
        flipped = bytearray(whole)
        flipped[-100] ^= 1
        path.write_bytes({"empty": b"", "short": whole[:-1], "flipped": flipped, "of another": b"x" * 999}[damage])
    assert np.array_equal(opened().train.images.read(1), np.asarray(Image.open(io.BytesIO(encoded(1)))))
    assert path.read_bytes() == whole
    assert not path.is_symlink()
    assert damage != "a link" or theirs.read_bytes() == whole


def test_where_nothing_can_be_kept_a_set_is_read_all_the_same(folder: Path, opened: Open) -> None:
    (folder.parent / "cache").write_text("in the way")
    repeated(folder / "train.parquet", 6, [encoded(n) for n in range(4)])
    assert np.array_equal(opened().train.images.read(5), np.asarray(Image.open(io.BytesIO(encoded(1)))))


@pytest.mark.parametrize("repeats", [2**26, 0], ids=["as a dictionary", "a few rows at a time"])
@pytest.mark.parametrize("struct", [True, False])
def test_every_row_has_its_own_image_however_it_is_stored(
    folder: Path, opened: Open, monkeypatch: pytest.MonkeyPatch, struct: bool, repeats: int
) -> None:
    """Of several files and row groups, some images twice, some rows without one."""
    monkeypatch.setattr(arrow, "REPEATS", repeats)
    monkeypatch.setattr(arrow, "_FEW", 3)
    images = [None if n % 7 == 3 else encoded(n % 9) for n in range(40)]
    for first in (0, 25):
        some = images[first : first + 25] if first == 0 else images[first:]
        cells = [image and {"bytes": image, "path": None} for image in some] if struct else some
        kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())]) if struct else pa.binary()
        table = pa.table({"image": pa.array(cells, kind), "label": [n % 2 for n in range(len(some))]})
        parquet.write_table(table, folder / f"train-{first:05}.parquet", row_group_size=8)
    monkeypatch.setattr("mlx_peft.data.tried.CHECKED", 0)
    found = opened().train.images
    for row, image in enumerate(images):
        if image is None:
            with pytest.raises(UserError, match=rf"row {row}: its image is missing"):
                found.read(row)
        else:
            assert np.array_equal(found.read(row), np.asarray(Image.open(io.BytesIO(image))))


BOUNDS = {
    "MAX_ROWS": (5, "and the files beside it have 6 rows; at most 5 are read"),
    "MAX_FOOTER": (10, "needs more than 0 MiB to say what is in it, the most that is read"),
    "MAX_GROUP": (2**27 + 1, "'image' has .* bytes unpacked; at most"),
    "MAX_CELLS": (5, "'label' has .* bytes unpacked; at most 5 are read"),
    "SMALL": (10, "'image' has .* bytes unpacked; at most"),
}


@pytest.mark.parametrize("bound", BOUNDS)
def test_what_a_file_says_of_itself_is_looked_at_before_anything_is_unpacked(
    folder: Path, opened: Open, monkeypatch: pytest.MonkeyPatch, bound: str
) -> None:
    repeated(folder / "train.parquet", 6, [encoded(n) for n in range(4)])
    opened()
    value, message = BOUNDS[bound]
    if bound == "MAX_GROUP":
        sizes = arrow._sizes
        monkeypatch.setattr(arrow, "_sizes", lambda group: sizes(group) | {"image": 2**40})
    else:
        monkeypatch.setattr(arrow, bound, value)
    if bound == "SMALL":
        monkeypatch.setattr(arrow, "MAX_RATIO", 0)
    monkeypatch.setattr(Table, "_contents", lambda *_: pytest.fail("unpacked"))
    with pytest.raises(UserError, match=message):
        opened()


def test_a_large_row_group_that_repeats_its_images_is_refused(
    folder: Path, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrow, "REPEATS", 1000)
    repeated(folder / "train.parquet", 600, [encoded(n, 20) for n in range(4)])
    with pytest.raises(UserError, match=r"'image' repeats images: [\d,]+ bytes in row group 0 become more than twice"):
        opened()


def test_rows_that_a_file_only_says_it_has_are_refused(
    folder: Path, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    repeated(folder / "train.parquet", 6, [encoded(n) for n in range(4)])

    class Lying:
        def __init__(self, path: Path, **options: Any) -> None:
            self.file = whole(path, **options)
            self.metadata = metadata(self.file.metadata)

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

        def __enter__(self) -> Any:
            return self

        def __exit__(self, *_: object) -> None:
            self.file.close()

    def metadata(true: Any) -> Any:
        class Metadata:
            num_rows = 10**12
            num_row_groups = true.num_row_groups
            row_group = staticmethod(true.row_group)

        return Metadata

    whole = parquet.ParquetFile
    monkeypatch.setattr(parquet, "ParquetFile", Lying)
    with pytest.raises(UserError, match=r"is damaged: it claims 1,000,000,000,000 rows, and its row groups have 6"):
        opened()


@pytest.mark.parametrize(
    ("column", "cells"),
    [
        ("image", pa.array([["a"], ["b"]] * 3)),
        ("image", pa.array([1.5, 2.5] * 3)),
        ("label", pa.array([[0, 1], [1]] * 3)),
        ("label", pa.array([{"a": 1}, {"a": 2}] * 3)),
        ("label", pa.array([0.5, 1.5] * 3)),
        ("image", pa.nulls(6)),
    ],
    ids=str,
)
def test_columns_of_something_else_are_refused_by_name(folder: Path, opened: Open, column: str, cells: Any) -> None:
    table = {"image": pa.array([encoded(n) for n in range(6)]), "label": pa.array([0, 1] * 3)} | {column: cells}
    parquet.write_table(pa.table(table), folder / "train.parquet")
    with pytest.raises(UserError, match=rf"train\.parquet.*'{column}'|labels of type float are no classes"):
        opened()


def test_a_group_s_name_that_would_take_too_much_memory_is_refused(
    folder: Path, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of them take as much as the longest."""
    monkeypatch.setattr("mlx_peft.data.sets.parquet.MAX_GROUPS", 6 * 99)
    patients = ["p"] * 5 + ["p" * 100]
    images = pa.array([encoded(n) for n in range(6)])
    parquet.write_table(pa.table({"image": images, "label": [0, 1] * 3, "patient": patients}), folder / "train.parquet")
    with pytest.raises(UserError, match="a group's name of 100 characters is too long for 6 rows"):
        opened()

"""Rows of Parquet files that are asked about: each is what was written there, and what is damaged is said."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from mlx_peft.core.errors import UserError
from mlx_peft.data import arrow, questions
from mlx_peft.data.parquet_rows import Cell, Lacking, Reader, rows_in
from mlx_peft.data.questions import Question, about
from mlx_peft.data.stream import PAUSE

STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
CONTENTS = st.lists(st.one_of(st.none(), st.binary(max_size=20)), min_size=1, max_size=30)


def write(path: Path, contents: list[bytes | None], group: int = 1000, *, struct: bool = False, **columns: Any) -> Path:
    images = [None if one is None else {"bytes": one, "path": "elsewhere.png"} for one in contents]
    column = pa.array(images, STRUCT) if struct else pa.array(contents, pa.binary())
    parquet.write_table(pa.table({"image": column, **columns}), path, row_group_size=group)
    return path


def read(*files: Path) -> list[bytes | str | None]:
    """What each row has, or why it has nothing."""
    reader, found = Reader(), []
    for name, content in rows_in(files):
        one = reader.read(content) if isinstance(content, Cell) else content
        assert name
        found.append(one.reason if isinstance(one, Lacking) else one)
    return found


@settings(deadline=None, max_examples=30)
@given(CONTENTS, CONTENTS, st.integers(1, 12), st.booleans())
def test_whatever_the_row_groups_each_row_is_what_was_written(
    one: list[bytes | None], other: list[bytes | None], group: int, struct: bool
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        files = (write(Path(folder, "a.parquet"), one, group, struct=struct), write(Path(folder, "b.parquet"), other))
        rows = rows_in(files)
        assert read(*files) == ["its image is missing" if content is None else content for content in (*one, *other)]
        assert len(rows) == len(one) + len(other) and max(len(name) for name, _ in rows) <= rows.longest
        assert [name for name, _ in rows][: len(one)] == [f"{files[0]}:{at}" for at in range(len(one))]


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(0, 19), min_size=1, max_size=20))
def test_rows_may_be_asked_for_in_any_order(order: list[int]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        contents = [bytes([at]) for at in range(20)]
        cells = [cell for _, cell in rows_in([write(Path(folder, "a.parquet"), [*contents], 7)])]
        reader = Reader()
        assert [reader.read(cells[at]) for at in order if isinstance(cells[at], Cell)] == [contents[at] for at in order]


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10**6), st.binary(min_size=1, max_size=40), st.integers(0, 400))
def test_a_damaged_file_is_refused_or_says_so_row_by_row(place: int, junk: bytes, cut: int) -> None:
    """Bytes overwritten anywhere, or the end cut off: never anything but a UserError, or a reason in a row's place."""
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder, "a.parquet"), [bytes([at]) * 50 for at in range(20)], 6)
        data = bytearray(path.read_bytes())
        place %= len(data)
        data[place : place + len(junk)] = junk
        path.write_bytes(bytes(data[: len(data) - cut % len(data)]))
        try:
            found = read(path)
        except UserError as error:
            assert "a.parquet" in str(error)
        else:
            assert all(isinstance(one, bytes | str) for one in found)


def test_a_damaged_row_group_costs_its_own_rows_alone(tmp_path: Path) -> None:
    contents = [bytes([at]) * 400 for at in range(20)]
    path = write(tmp_path / "a.parquet", [*contents], 5)
    data = bytearray(path.read_bytes())
    start = parquet.ParquetFile(path).metadata.row_group(1).column(0).dictionary_page_offset
    data[start : start + 30] = b"\xff" * 30
    path.write_bytes(data)
    found = read(path)
    assert found[:5] == contents[:5] and found[10:] == contents[10:]
    assert all(isinstance(one, str) and one.startswith("cannot be read (") for one in found[5:10])


def test_of_several_files_one_that_is_none_is_a_row_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"no such thing")
    good = write(tmp_path / "b.parquet", [b"x"])
    said, one = read(tmp_path / "a.parquet", good)
    assert one == b"x" and isinstance(said, str) and "a.parquet is not a readable Parquet file" in said
    with pytest.raises(UserError, match="not a readable Parquet file"):
        rows_in([tmp_path / "a.parquet"])


def test_the_column_of_images_is_the_only_one_or_has_a_usual_name(tmp_path: Path) -> None:
    texts = pa.table({"label": ["a"], "n": [1]})
    parquet.write_table(texts, tmp_path / "none.parquet")
    with pytest.raises(UserError, match="no column holds images; there is label, n: one of them should be called"):
        rows_in([tmp_path / "none.parquet"])
    thumb, other = pa.array([b"t"], pa.binary()), pa.array([b"o"], pa.binary())
    parquet.write_table(pa.table({"thumb": thumb, "n": [1]}), tmp_path / "only.parquet")
    assert read(tmp_path / "only.parquet") == [b"t"]
    assert read(write(tmp_path / "usual.parquet", [b"x"], thumb=thumb)) == [b"x"]
    parquet.write_table(pa.table({"thumb": thumb, "other": other}), tmp_path / "both.parquet")
    with pytest.raises(UserError, match="several columns may hold images; there is thumb, other"):
        rows_in([tmp_path / "both.parquet"])


def test_more_than_any_real_file_has_is_refused_before_it_is_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "a.parquet", [b"x" * 1000] * 50)
    monkeypatch.setattr(arrow, "MAX_ROWS", 49)
    with pytest.raises(UserError, match="50 rows; at most 49 are read"):
        rows_in([path])
    monkeypatch.undo()
    monkeypatch.setattr(arrow, "MAX_GROUP", 500)
    with pytest.raises(UserError, match="bytes unpacked; at most 500 are read"):
        rows_in([path])


def test_no_more_than_so_many_bytes_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever decodes takes no more before a pause than what was asked before it: see ``data.stream``."""
    monkeypatch.setattr(questions, "HELD", 25)
    path = write(tmp_path / "a.parquet", [bytes([at]) * 10 for at in range(7)])
    each = [*about([path], None).with_contents()]
    assert [one is PAUSE for one in each] == [False, False, False, True] * 2 + [False]
    assert sum(isinstance(one, Question) and isinstance(one.content, bytes) for one in each) == 7


def test_a_folder_is_of_images_or_of_parquet_files(tmp_path: Path) -> None:
    write(tmp_path / "b.parquet", [b"x", b"y"])
    write(tmp_path / "a.parquet", [b"z"])
    found = about([tmp_path], None, "north")
    assert found.count == 3 and found.notes == ()
    names = [(one.image, one.adapter, Path(one.file).name) for one in found.without_pauses()]
    assert names == [
        (f"{tmp_path}/{name}", "north", name[:9]) for name in ("a.parquet:0", "b.parquet:0", "b.parquet:1")
    ]
    (tmp_path / "photo.png").write_bytes(b"")
    beside = about([tmp_path], None)
    assert [one.image for one in beside.without_pauses()] == [f"{tmp_path}/photo.png"]
    assert beside.notes == ("not read: 2 Parquet files beside images (a.parquet, b.parquet); name them",)

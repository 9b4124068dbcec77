"""A CSV file of paths and labels: columns, splits, groups, and everything that a file can have wrong."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mlx_peft.core.errors import UserError
from mlx_peft.data import Dataset, cells, lists
from mlx_peft.data.sets import table as tables

Open = Callable[..., Dataset]
Save = Callable[..., Path]


@pytest.fixture
def images(tmp_path: Path, save: Save) -> Path:
    for number in range(24):
        save(tmp_path / "scans" / f"{number}.png", number)
    return tmp_path


def table(root: Path, heading: str, row: Callable[[int], str], name: str = "labels.csv") -> Path:
    (root / name).write_text("\n".join([heading, *(row(number) for number in range(24))]) + "\n")
    return root / name


def test_paths_and_labels_are_enough(images: Path, opened_as: Open) -> None:
    table(images, "path,label", lambda n: f"scans/{n}.png,{'ill' if n % 3 else 'well'}")
    dataset = opened_as("csv", images, split={"val": 0.25, "test": 0.0})
    assert dataset.classes == ("ill", "well")
    assert {name: split.size for name, split in dataset.splits.items()} == {"train": 18, "val": 6}
    assert dataset.train.images.read(0).shape == (8, 10, 3)
    assert opened_as("csv", images / "labels.csv", split={"val": 0.25}).train.sha256 == dataset.train.sha256


def test_numbers_are_sorted_as_numbers_and_named_columns_are_used(images: Path, opened_as: Open) -> None:
    table(images, "id,where,grade,label", lambda n: f"{n},scans/{n}.png,{n % 12},x")
    dataset = opened_as("csv", images, columns={"image": "where", "label": "grade"}, split={"val": 0})
    assert dataset.classes == tuple(map(str, range(12)))
    with pytest.raises(UserError, match=r"data\.columns\.label: there is no column 'grades' in .*did you mean 'grade'"):
        opened_as("csv", images, columns={"image": "where", "label": "grades"})
    with pytest.raises(UserError, match=r"no column is called image or path.*there is id, where, grade, label"):
        opened_as("csv", images)


@pytest.mark.parametrize("odd", ["--5", "-", "9" * 5000, "٣", "1_0"])
def test_a_label_that_only_looks_like_a_number_is_a_name(images: Path, opened_as: Open, odd: str) -> None:
    table(images, "path,label", lambda n: f"scans/{n}.png,{n % 2 or odd}")
    assert opened_as("csv", images, split={"val": 0}).classes == tuple(sorted(["1", odd]))


def test_a_patient_is_never_in_two_splits(images: Path, opened_as: Open) -> None:
    table(
        images,
        "image\tclass\tpatient",
        lambda n: f"scans/{n}.png\t{n // 3 % 2}\tp{n // 3}{' ' * (n % 2)}",
        name="a.tsv",
    )
    dataset = opened_as("csv", images, split={"val": 0.25, "test": 0.25})
    held = [{path.split("/")[1] for path in split.images.identifiers} for split in dataset.splits.values()]
    patients = [{int(name.removesuffix(".png")) // 3 for name in part} for part in held]
    assert [len(part) for part in patients] == [4, 2, 2]
    assert len(set.union(*patients)) == 8, "eight patients, none of them twice"


def test_own_splits_are_used_and_must_not_part_a_group(images: Path, opened_as: Open) -> None:
    def row(n: int) -> str:
        return f"scans/{n}.png,{n % 2},{('train', 'Validation', 'TEST')[n // 8]},p{n // 4}"

    path = table(images, "file,target,split,group", row)
    dataset = opened_as("csv", images)
    assert {name: split.size for name, split in dataset.splits.items()} == {"train": 8, "val": 8, "test": 8}
    path.write_text(path.read_text().replace("scans/9.png,1,Validation,p2", "scans/9.png,1,Validation,p1"))
    with pytest.raises(UserError, match=r"1 group \(the first: p1\) with images in train and in val"):
        opened_as("csv", images)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,label\n", "lists nothing"),
        ("path,label\nscans/1.png\n", "row 1 has 1 cell, not 2 as the heading"),
        ("path,label\nscans/1.png,a,b\n", "row 1 has 3 cells, not 2 as the heading"),
        ("path,label\nscans/1.png,\n", "row 1 has no 'label'"),
        ("path,label,patient\nscans/1.png,a, \n", r"row 1 has no 'patient': .*set data\.columns\.group: none"),
        ("path,path\nscans/1.png,a\n", "two columns have the same name"),
        ("path,label\nscans/99.png,a\n", r"'scans/99\.png' is listed, and there is no"),
        ("path,label\nscans/1.png,a\n./scans/1.png,a\n", r"'scans/1\.png' is listed twice"),
        ("path,label\n../outside.png,a\n", r"'\.\./outside\.png' is not a path inside"),
        ("path,label\n/etc/passwd,a\n", "'/etc/passwd' is not a path inside"),
        ("path,label\nlink.png,a\n", r"'link\.png' is a link that leads out of"),
        ("path,label\nlinked/outside.png,a\n", r"'linked/outside\.png' is a link that leads out of"),
        ("path,label,split\nscans/1.png,a,holdout\n", "the split 'holdout' in 'split' is none of train, val and test"),
        ("path,label,split\nscans/1.png,a,test\n", "no row has the split train"),
        ('path,label\n"scans/1.png,a\n', "is no line of a table"),
        ("path,label\nscans/1\0.png,a\n", "line|not a path inside"),
    ],
)
def test_a_table_that_cannot_be_right_is_refused(
    images: Path, save: Save, opened_as: Open, text: str, message: str
) -> None:
    root = images / "root"
    (root / "scans").mkdir(parents=True)
    save(root / "scans" / "1.png")
    save(images / "outside.png")
    (root / "link.png").symlink_to(images / "outside.png")
    (root / "linked").symlink_to(images)
    (root / "labels.csv").write_text(text)
    with pytest.raises(UserError, match=rf"labels\.csv:? .*({message})"):
        opened_as("csv", root)


@pytest.mark.parametrize("name", ["fold", "set"])
def test_a_column_that_may_be_of_splits_is_one_if_it_is_named(images: Path, opened_as: Open, name: str) -> None:
    table(images, f"path,label,{name}", lambda n: f"scans/{n}.png,{n % 2},{n % 5}")
    dataset = opened_as("csv", images, split={"val": 0})
    assert {part: split.size for part, split in dataset.splits.items()} == {"train": 24}
    note = f"not used: column '{name}'; where it holds splits, set data.columns.split: {name}"
    assert note in dataset.notes
    assert note not in opened_as("csv", images, columns={"split": "none"}).notes
    with pytest.raises(UserError, match=f"the split '0' in '{name}' is none of .*, or none"):
        opened_as("csv", images, columns={"split": name})
    table(images, f"path,label,{name}", lambda n: f"scans/{n}.png,{n % 2},{'test' if n < 4 else 'train'}")
    dataset = opened_as("csv", images, columns={"split": name}, split={"val": 0})
    assert {part: split.size for part, split in dataset.splits.items()} == {"train": 20, "test": 4}


def test_columns_of_splits_and_groups_can_be_left_alone(images: Path, opened_as: Open) -> None:
    table(images, "path,label,subset,patient", lambda n: f"scans/{n}.png,{n % 2},{n % 5},{'p' * (n % 2)}")
    with pytest.raises(UserError, match=r"row 1 has no 'patient'"):
        opened_as("csv", images, columns={"split": "none"})
    with pytest.raises(UserError, match=r"the split '0' in 'subset' is none of .*data\.columns\.split, or none"):
        opened_as("csv", images, columns={"group": "none"})
    dataset = opened_as("csv", images, columns={"group": "none", "split": "none"}, split={"val": 0.25})
    assert {part: split.size for part, split in dataset.splits.items()} == {"train": 18, "val": 6}
    assert dataset.train.groups is None


def test_a_folder_of_several_tables_is_refused(images: Path, opened_as: Open) -> None:
    for name in ("a.csv", "b.csv"):
        table(images, "path,label", lambda n: f"scans/{n}.png,{n % 2}", name)
    with pytest.raises(UserError, match=r"a folder with one in it; there is a\.csv, b\.csv"):
        opened_as("csv", images)


def test_a_text_that_is_not_utf_8_is_refused_by_name(images: Path, opened_as: Open) -> None:
    (images / "labels.csv").write_bytes("path,label\nscans/1.png,gelé\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"labels\.csv: not a text in UTF-8"):
        opened_as("csv", images)


def test_broken_images_of_a_table_are_refused_or_skipped(images: Path, opened_as: Open) -> None:
    table(images, "path,label", lambda n: f"scans/{n}.png,{n % 2}")
    (images / "scans" / "5.png").write_bytes((images / "scans" / "5.png").read_bytes()[:60])
    with pytest.raises(UserError, match=r"scans/5\.png: not a readable image"):
        opened_as("csv", images)
    dataset = opened_as("csv", images, unreadable="skip", split={"val": 0})
    assert dataset.train.size == 23
    assert dataset.notes == ("left out, unreadable: 1 (scans/5.png)",)


def test_columns_of_a_set_that_is_no_table_are_refused(images: Path, opened_as: Open) -> None:
    with pytest.raises(UserError, match=r"data\.columns: folder is no table"):
        opened_as("folder", images, columns={"label": "x"})


def test_near_duplicates_are_kept_together_where_that_is_asked_for(images: Path, save: Save, opened_as: Open) -> None:
    for number in range(1, 24, 2):
        (images / "scans" / f"{number}.png").write_bytes((images / "scans" / f"{number - 1}.png").read_bytes())
    table(images, "path,label", lambda n: f"scans/{n}.png,{n // 2 % 2}")
    dataset = opened_as("csv", images, split={"val": 1 / 3, "test": 1 / 3, "group_by": "duplicates"})
    pairs = [np.array([int(p.split("/")[1][:-4]) // 2 for p in s.images.identifiers]) for s in dataset.splits.values()]
    assert [len(part) for part in pairs] == [8, 8, 8]
    assert not set(pairs[0]) & set(pairs[1]) | set(pairs[0]) & set(pairs[2]) | set(pairs[1]) & set(pairs[2])


TIMES = 20
"""Bytes of memory that reading may take for each of a table's, in rows of a few letters: texts have a head of their
own, of 50. A dictionary a row takes some 90."""


def test_a_table_takes_little_more_memory_than_its_text(
    tmp_path: Path, opened_as: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the wanted columns are kept, up to the first image that is not there."""
    monkeypatch.setattr(lists, "MAX_TEXT", 2**20)  # which a file is given room for before it is read
    text = "path,label,a,b,c\n" + "x,y,,,\n" * 100_000
    (tmp_path / "labels.csv").write_text(text)
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match="'x' is listed, and there is no"):
            opened_as("csv", tmp_path)
        assert tracemalloc.get_traced_memory()[1] < TIMES * len(text)
    finally:
        tracemalloc.stop()


def test_a_table_is_bounded(images: Path, opened_as: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    table(images, "path,label,group", lambda n: f"scans/{n}.png,{n % 2},{'g' * max(1, n)}")
    with monkeypatch.context() as patched:
        patched.setattr(cells, "MAX_ROWS", 23)
        with pytest.raises(UserError, match=r"labels\.csv has more than 23 rows"):
            opened_as("csv", images)
    monkeypatch.setattr(tables, "MAX_GROUPS", 23 * 24 - 1)
    with pytest.raises(UserError, match=r"labels\.csv: a group's name of 23 characters is too long for 24 rows"):
        opened_as("csv", images)
    monkeypatch.setattr(tables, "MAX_GROUPS", 23 * 24)
    assert opened_as("csv", images, split={"val": 0}).train.size == 24


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_lines_end_as_they_may_and_cells_may_hold_them(images: Path, opened_as: Open, end: str) -> None:
    rows = ["path,label,note", "scans/1.png,a,", f'scans/2.png,b,"one{end}""two"", three"', "", "scans/3.png,a,x"]
    (images / "labels.csv").write_bytes(end.join(rows).encode())
    dataset = opened_as("csv", images, split={"val": 0})
    assert dataset.train.images.identifiers == ("scans/1.png", "scans/2.png", "scans/3.png")
    assert dataset.train.labels.tolist() == [0, 1, 0]

"""A CSV file of paths and labels: columns, splits, groups, and everything that a file can have wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mlx_peft.config.errors import UserError
from mlx_peft.data import Dataset

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
    with pytest.raises(UserError, match=r"data\.columns\.label: no 'grades' in .*did you mean 'grade'"):
        opened_as("csv", images, columns={"image": "where", "label": "grades"})
    with pytest.raises(UserError, match=r"no column is called image or path.*there is id, where, grade, label"):
        opened_as("csv", images)


@pytest.mark.parametrize("odd", ["--5", "-", "9" * 5000, "٣", "1_0"])
def test_a_label_that_only_looks_like_a_number_is_a_name(images: Path, opened_as: Open, odd: str) -> None:
    table(images, "path,label", lambda n: f"scans/{n}.png,{n % 2 or odd}")
    assert opened_as("csv", images, split={"val": 0}).classes == tuple(sorted(["1", odd]))


def test_a_patient_is_never_in_two_splits(images: Path, opened_as: Open) -> None:
    table(images, "image\tclass\tpatient", lambda n: f"scans/{n}.png\t{n // 3 % 2}\tp{n // 3}", name="a.tsv")
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
    with pytest.raises(UserError, match=r"1 groups \(the first: p1\) have images in train and in val"):
        opened_as("csv", images)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,label\n", "lists nothing"),
        ("path,label\nscans/1.png\n", "row 1 does not have 2 cells"),
        ("path,label\nscans/1.png,a,b\n", "row 1 does not have 2 cells"),
        ("path,label\nscans/1.png,\n", "row 1 has no 'label'"),
        ("path,path\nscans/1.png,a\n", "two columns have the same name"),
        ("path,label\nscans/99.png,a\n", r"'scans/99\.png' is listed and not there"),
        ("path,label\nscans/1.png,a\n./scans/1.png,a\n", r"'scans/1\.png' is listed twice"),
        ("path,label\n../outside.png,a\n", r"'\.\./outside\.png' is not a path inside"),
        ("path,label\n/etc/passwd,a\n", "'/etc/passwd' is not a path inside"),
        ("path,label\nlink.png,a\n", r"'link\.png' is a link that leads out of"),
        ("path,label\nlinked/outside.png,a\n", r"'linked/outside\.png' is a link that leads out of"),
        ("path,label,split\nscans/1.png,a,holdout\n", "the split 'holdout' is none of train, val and test"),
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
    with pytest.raises(UserError, match=rf"labels\.csv: .*({message})"):
        opened_as("csv", root)


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
    table(images, "path,label", lambda n: f"scans/{n}.png,a")
    dataset = opened_as("csv", images, split={"val": 0.25, "test": 0.25, "group_by": "duplicates"})
    pairs = [np.array([int(p.split("/")[1][:-4]) // 2 for p in s.images.identifiers]) for s in dataset.splits.values()]
    assert [len(part) for part in pairs] == [12, 6, 6]
    assert not set(pairs[0]) & set(pairs[1]) | set(pairs[0]) & set(pairs[2]) | set(pairs[1]) & set(pairs[2])

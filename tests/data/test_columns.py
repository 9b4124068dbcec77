"""Tables as people have them: columns under other names, identifiers in the place of paths, other marks and letters."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from mlx_peft.core.errors import UserError
from mlx_peft.data import Dataset
from mlx_peft.data.lists import images_in, labels_of

Open = Callable[..., Dataset]
Save = Callable[..., Path]
ROWS = 12
NONE_HELD = {"val": 0}


@pytest.fixture
def images(tmp_path: Path, save: Save) -> Path:
    for number in range(ROWS):
        save(tmp_path / "scans" / f"{number}.png", number)
    return tmp_path


def table(root: Path, heading: str, row: Callable[[int], str], encoding: str = "utf-8") -> Path:
    path = root / "labels.csv"
    path.write_bytes("\n".join([heading, *map(row, range(ROWS)), ""]).encode(encoding))
    return path


@pytest.mark.parametrize(
    "name",
    [
        *("PatientID", "Patient ID", "patient-id", "PATIENT", "Patient Nr.", "subject_id", "Subject", "participant_id"),
        *("StudyInstanceUID", "lesion_id", "person_id", "case_id", "group", "Group ID", "donor", "slide_id"),
    ],
)
def test_a_patient_is_known_by_every_usual_name(images: Path, opened_as: Open, name: str) -> None:
    table(images, f"path,label,{name}", lambda n: f"scans/{n}.png,{n // 2 % 2},p{n // 2}")
    dataset = opened_as("csv", images, split={"val": 1 / 3, "test": 1 / 3})
    assert f"{ROWS} images in {ROWS // 2} groups, never parted" in dataset.notes
    patients = [{int(path[6:-4]) // 2 for path in split.images.identifiers} for split in dataset.splits.values()]
    assert [len(part) for part in patients] == [2, 2, 2]
    assert len(set.union(*patients)) == 6
    assert opened_as("csv", images, columns={"group": "none"}, split=NONE_HELD).train.groups is None


@pytest.mark.parametrize("image", ["image", "Image Name", "img_file", "img_path", "path", "FilePath", "id_code"])
@pytest.mark.parametrize("label", ["label", "Class Name", "target_name", "category"])
def test_images_and_labels_are_known_by_every_usual_name(images: Path, opened_as: Open, image: str, label: str) -> None:
    table(images, f"{image},{label}", lambda n: f"scans/{n}.png,{n % 2}")
    assert opened_as("csv", images, split=NONE_HELD).train.size == ROWS


def test_of_a_patient_and_a_lesion_the_patient_is_kept_together(images: Path, opened_as: Open) -> None:
    table(images, "path,label,lesion_id,patient id", lambda n: f"scans/{n}.png,{n % 2},l{n // 2},p{n // 4}")
    groups = opened_as("csv", images, split=NONE_HELD).train.groups
    assert groups is not None
    assert groups.tolist() == [f"p{n // 4}" for n in range(ROWS)]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(
            (name, lambda n: str(n // 2))
            for name in ("patient_hash", "caseRef", "Subject (anonymised)", "series", "visit", "subj")
        ),
        *((name, lambda n: f"{n // 2}") for name in ("eye_code", "frame no", "plantUID", "pid", "MRN")),
        ("photographer", lambda n: "abcdefghij"[min(n, 9) if n < 9 else n % 9]),
    ],
)
def test_a_column_that_may_be_of_groups_is_noted(
    images: Path, opened_as: Open, name: str, value: Callable[[int], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlx_peft.data.columns.MANY_VALUES", 5)
    monkeypatch.setattr("mlx_peft.data.columns.FEW_AT_LEAST", 1.2)
    table(images, f"path,label,{name}", lambda n: f"scans/{n}.png,{n % 2},{value(n)}")
    dataset = opened_as("csv", images, split=NONE_HELD)
    assert dataset.train.groups is None
    (note,) = dataset.notes
    assert note.startswith(f"not used: column {name!r}; where images with the same value belong together")
    assert f"set data.columns.group: {name}," in note
    assert opened_as("csv", images, split=NONE_HELD, columns={"group": "none"}).notes == ()
    groups = opened_as("csv", images, split=NONE_HELD, columns={"group": name}).train.groups
    assert groups is not None and len(np.unique(groups)) < ROWS


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("age", lambda n: 30 + n // 2),
        ("Patient Age", lambda n: 30 + n // 2),
        ("patient_sex", lambda n: "fm"[n % 2]),
        ("width", lambda n: 640),
        ("class_id", lambda n: n % 2),
        ("scanner_id", lambda n: n % 3),
        ("case_image_no", lambda n: n),
        ("remark", lambda n: ""),
    ],
)
def test_a_column_that_says_something_else_is_not_noted(
    images: Path, opened_as: Open, name: str, value: Callable[[int], object]
) -> None:
    table(images, f"path,label,{name}", lambda n: f"scans/{n}.png,{n % 2},{value(n)}")
    assert opened_as("csv", images, split=NONE_HELD).notes == ()


def test_a_table_of_a_thousand_numbers_a_row_is_looked_at_in_part(
    images: Path, opened_as: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_at: list[int] = []
    monkeypatch.setattr("mlx_peft.data.sets.table.SAMPLED", 3000)
    monkeypatch.setattr("mlx_peft.data.columns._may_group", lambda name, cells: looked_at.append(len(cells)))
    numbers = ",".join(["0.5"] * 1000)
    table(images, "path,label," + ",".join(f"f{n}" for n in range(1000)), lambda n: f"scans/{n}.png,{n % 2},{numbers}")
    opened_as("csv", images, split=NONE_HELD)
    assert looked_at == [3] * 1000
    table(images, ",".join(f"f{n}" for n in range(1000)), lambda n: numbers)
    with pytest.raises(UserError, match=r"there is f0, .*, f19 and 980 more: name it in data\.columns\.image"):
        opened_as("csv", images)


def test_parquet_has_the_same_columns(images: Path, opened_as: Open) -> None:
    pytest.importorskip("datasets")
    content = [(images / "scans" / f"{n}.png").read_bytes() for n in range(ROWS)]
    root = images / "parquet"
    root.mkdir()
    rows = {"image": content, "Diagnosis": ["café", "cafe\u0301", "tea"] * 4}
    parquet.write_table(pa.table(rows | {"Patient ID": [f"p{n // 3}" for n in range(ROWS)]}), root / "train.parquet")
    parquet.write_table(pa.table({"image": content, "label": [0] * ROWS}), root / "._train.parquet")
    dataset = opened_as("parquet", root, split=NONE_HELD)
    assert dataset.classes == ("café", "tea")
    assert dataset.notes == (f"{ROWS} images in 4 groups, never parted",)
    parquet.write_table(pa.table(rows | {"eye": [f"e{n // 2}" for n in range(ROWS)]}), root / "train.parquet")
    assert opened_as("parquet", root, split=NONE_HELD).notes == ()
    parquet.write_table(pa.table(rows | {"case": [n // 2 for n in range(ROWS)]}), root / "train.parquet")
    assert opened_as("parquet", root, split=NONE_HELD).notes[0].startswith("not used: column 'case'; where images")
    rows["Diagnosis"] = ["tea", None, "coffee"] * 4
    parquet.write_table(pa.table(rows), root / "train.parquet")
    with pytest.raises(UserError, match=r"4 of the 12 train images have no label \(the first: row 1\)"):
        opened_as("parquet", root)


def test_identifiers_become_paths_by_a_pattern(images: Path, opened_as: Open) -> None:
    table(images, "id_code,diagnosis", lambda n: f"{n},{n % 2}")
    with pytest.raises(
        UserError,
        match=r"'0' is listed, and there is no .*; there is scans/0\.png: set data\.columns\.image: 'scans/\{id_",
    ):
        opened_as("csv", images)
    dataset = opened_as("csv", images, columns={"image": "scans/{id_code}.png"}, split=NONE_HELD)
    assert dataset.train.images.identifiers == tuple(f"scans/{n}.png" for n in range(ROWS))
    with pytest.raises(
        UserError,
        match=r"data\.columns\.image: .* names the column 'id-code', which .* does not have; did you mean 'id_code'",
    ):
        opened_as("csv", images, columns={"image": "scans/{id-code}.png"})
    table(images, "folder,name,label", lambda n: f"scans,{n},{n % 2}")
    assert opened_as("csv", images, columns={"image": "{folder}/{name}.png"}, split=NONE_HELD).train.size == ROWS
    table(images, "folder,name,label", lambda n: f"..,{n},{n % 2}")
    with pytest.raises(UserError, match=r"'\.\./0\.png' is not a path inside"):
        opened_as("csv", images, columns={"image": "{folder}/{name}.png"})


def test_a_pattern_s_star_stands_for_the_folders_of_a_set_in_parts(images: Path, opened_as: Open, save: Save) -> None:
    for number in range(ROWS):
        save(images / f"part_{1 + number % 2}" / f"i{number}.jpg", number)
    table(images, "image_id,dx", lambda n: f"i{n},{n % 3}")
    with pytest.raises(UserError, match=r"'i0' is listed.*: set data\.columns\.image: 'part_\*/\{image_id\}\.jpg'"):
        opened_as("csv", images)
    dataset = opened_as("csv", images, columns={"image": "part_*/{image_id}.jpg"}, split=NONE_HELD)
    assert dataset.train.images.identifiers[:2] == ("part_1/i0.jpg", "part_2/i1.jpg")
    (images / ".hidden").mkdir()
    save(images / ".hidden" / "i2.jpg")
    assert opened_as("csv", images, columns={"image": "**/{image_id}.jpg"}, split=NONE_HELD).train.size == ROWS
    for pattern in ("a**b", "part_**", "**/part_1**"):  # what pathlib makes of them differs between Pythons
        with pytest.raises(UserError, match=r"names no folders: \*\* is a whole name, as in a/\*\*/b"):
            opened_as("csv", images, columns={"image": f"{pattern}/{{image_id}}.jpg"})
    save(images / "part_2" / "i0.jpg")
    with pytest.raises(UserError, match=r"part_1/i0\.jpg and part_2/i0\.jpg are both called as data\.columns\."):
        opened_as("csv", images, columns={"image": "part_*/{image_id}.jpg"})
    with pytest.raises(UserError, match=r"a star stands for folders below .*, with the columns behind them"):
        opened_as("csv", images, columns={"image": "../*/{image_id}.jpg"})


def test_images_that_lie_elsewhere_are_found_for_the_message(images: Path, opened_as: Open) -> None:
    table(images, "filename,label", lambda n: f"{n}.png,{n % 2}")
    with pytest.raises(UserError, match=r"there is scans/0\.png: set data\.columns\.image: 'scans/\{filename\}'"):
        opened_as("csv", images)
    table(images, "filename,label", lambda n: f"scans/{n}.JPG,{n % 2}")
    with pytest.raises(UserError, match=r"'scans/0\.JPG' is listed, and there is no .*; there is scans/0\.png$"):
        opened_as("csv", images)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("mark", [",", ";", "\t", "|"])
def test_a_spreadsheet_s_file_is_read(images: Path, opened_as: Open, encoding: str, mark: str) -> None:
    rows = (
        mark.join(("path", "label", "of, or; by")),
        lambda n: mark.join((f"scans/{n}.png", f"gelée {n % 2}", '"a,b;c"')),
    )
    heading = mark.join(("path", "label", '"of, or; by"'))
    table(images, heading, rows[1], encoding)
    dataset = opened_as("csv", images, split=NONE_HELD)
    assert dataset.classes == ("gelée 0", "gelée 1")
    said = f"labels.csv: read with {mark!r} between its cells"
    assert dataset.notes == (() if mark == "," else (said,))


def test_a_spreadsheet_s_line_about_its_mark_is_followed(images: Path, opened_as: Open) -> None:
    path = table(images, "path;label, as seen", lambda n: f"scans/{n}.png;{n % 2}")
    path.write_text("sep=;\n" + path.read_text())
    columns = {"label": "label, as seen"}
    assert opened_as("csv", images, columns=columns, split=NONE_HELD).classes == ("0", "1")


def test_what_is_no_text_says_what_it_is(images: Path, opened_as: Open) -> None:
    table(images, "path,label", lambda n: f"scans/{n}.png,gelé", "latin-1")
    with pytest.raises(UserError, match=r"not a text in UTF-8 .*; save it as UTF-8 \(in a spreadsheet: .CSV UTF-8.\)"):
        opened_as("csv", images)
    (images / "labels.csv").write_bytes(b"\xff\xfep\0a\0t")
    with pytest.raises(UserError, match=r"not a text in UTF-16 \(truncated data"):
        opened_as("csv", images)
    (images / "labels.csv").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n")
    with pytest.raises(UserError, match=r"labels\.csv: it is a Git LFS pointer .*: run `git lfs pull`"):
        opened_as("csv", images)


def test_a_mac_s_file_beside_the_table_is_not_a_second_one(images: Path, opened_as: Open) -> None:
    table(images, "path,label", lambda n: f"scans/{n}.png,{n % 2}")
    (images / "._labels.csv").write_bytes(b"\0\5\x16\7")
    assert opened_as("csv", images, split=NONE_HELD).train.size == ROWS


@pytest.mark.parametrize(("disk", "listed"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_accents_are_the_same_in_either_spelling(
    tmp_path: Path, save: Save, opened_as: Open, disk: str, listed: str
) -> None:
    """In folders, files, classes, groups and the names of columns; of lists too."""
    for number in range(ROWS):
        save(tmp_path / unicodedata.normalize(disk, f"été/é{number}.png"), number)
    lines = [f"été/é{n}.png,{'café' if n % 2 else 'thé'},Zoë{n // 4}" for n in range(ROWS)]
    spellings = [unicodedata.normalize((listed, disk)[n % 3 == 0], line) for n, line in enumerate(lines)]
    heading = unicodedata.normalize(listed, "path,catégorie,élève")
    (tmp_path / "labels.csv").write_text("\n".join([heading, *spellings]))
    columns = {"label": unicodedata.normalize(disk, "catégorie"), "group": unicodedata.normalize(disk, "élève")}
    dataset = opened_as("csv", tmp_path, columns=columns, split=NONE_HELD)
    assert dataset.classes == ("café", "thé")
    assert dataset.train.groups is not None and len(np.unique(dataset.train.groups)) == 3
    assert dataset.train.images.read(5).shape == (8, 10, 3)
    names = [unicodedata.normalize(listed, "été/é1.png"), unicodedata.normalize(disk, "été/é1.png")]
    with pytest.raises(UserError, match="is listed twice"):
        images_in(tmp_path, names, tmp_path)
    assert labels_of([unicodedata.normalize(listed, "é")], [unicodedata.normalize(disk, "é")], tmp_path).tolist() == [0]


def test_a_split_without_labels_is_left_out_and_a_part_of_one_refused(images: Path, opened_as: Open) -> None:
    """As of folders."""

    def row(n: int, labelled: int) -> str:
        return f"scans/{n}.png,{n % 2 if n < labelled else ''},{'train' if n < 8 else 'test set'}"

    table(images, "path,label,split", lambda n: row(n, 8))
    dataset = opened_as("csv", images, split=NONE_HELD)
    assert {name: split.size for name, split in dataset.splits.items()} == {"train": 8}
    assert dataset.notes == ("left out, without labels: test, 4 images",)
    for labelled in (7, 9):
        table(images, "path,label,split", lambda n, labelled=labelled: row(n, labelled))  # type: ignore[misc]
        with pytest.raises(UserError, match=r"row (8|10) has no 'label': fill it in, or leave the row out"):
            opened_as("csv", images)


def test_a_split_may_lack_a_class_but_not_have_more(images: Path, opened_as: Open) -> None:
    table(
        images, "path,label,split", lambda n: f"scans/{n}.png,{n % 2 if n < 8 else 0},{'Training' if n < 8 else 'dev'}"
    )
    assert opened_as("csv", images).notes == ("no images of '1' in val",)
    table(
        images, "path,label,split", lambda n: f"scans/{n}.png,{n % 2 if n < 8 else 2},{'Training' if n < 8 else 'dev'}"
    )
    with pytest.raises(UserError, match=r"no images of '2' in train, and some in val"):
        opened_as("csv", images)

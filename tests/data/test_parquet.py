"""Parquet files as the hub has them: images as bytes, class names in the schema, and an unlabelled test."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import datasets
import huggingface_hub
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from mlx_peft.core import reach
from mlx_peft.core.errors import UserError
from mlx_peft.data import Dataset, find

Open = Callable[..., Dataset]
CLASSES = ["ant", "bee", "cat"]


def encoded(seed: int, form: str = "PNG", mode: str = "RGB") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 10, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, form)
    return file.getvalue()


def write(path: Path, labels: list[int], **columns: list[object]) -> None:
    """A file as ``Dataset.push_to_hub`` writes it: by the library itself."""
    path.parent.mkdir(parents=True, exist_ok=True)
    modes = ("RGB", "L")
    images = [{"bytes": encoded(n, mode=modes[n % 2]), "path": f"{n}.png"} for n in range(len(labels))]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=CLASSES)})
    features |= {name: datasets.Value("string") for name in columns}
    table = datasets.Dataset.from_dict({"image": images, "label": labels, **columns}, features=features)
    table.to_parquet(path)


@pytest.fixture
def hub_folder(tmp_path: Path) -> Path:
    root = tmp_path / "snapshot"
    write(root / "data" / "train-00000-of-00002.parquet", [0, 1, 2, 0])
    write(root / "data" / "train-00001-of-00002.parquet", [1, 2])
    write(root / "data" / "validation-00000-of-00001.parquet", [2, 1, 0])
    write(root / "data" / "test-00000-of-00001.parquet", [-1, -1])
    (root / "README.md").write_text("---\nlicense: mit\n---\n")
    return root


def test_a_folder_of_parquet_files_is_read(hub_folder: Path, opened_as: Open) -> None:
    dataset = opened_as("parquet", hub_folder)
    assert dataset.classes == tuple(CLASSES)
    assert {name: split.size for name, split in dataset.splits.items()} == {"train": 6, "val": 3}
    assert dataset.train.labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert dataset.notes == ("left out, without labels: test, 2 images",)
    assert dataset.val
    image = dataset.val.images.read(2)
    assert np.array_equal(image, np.asarray(Image.open(io.BytesIO(encoded(2)))))
    grey = dataset.train.images.read(1)
    assert np.array_equal(grey[..., 0], grey[..., 2])


def test_a_set_of_the_hub_is_that_folder_in_the_hub_s_cache(
    hub_folder: Path, opened_as: Open, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []

    def snapshot(repo: str, **options: object) -> str:
        asked.append((repo, options))
        return str(hub_folder)

    monkeypatch.setattr(reach, "silence", lambda: None)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    dataset = opened_as("hf:someone/animals@v1", hub_folder / "unused", download=True)
    assert dataset.name == "hf:someone/animals@v1"
    assert dataset.train.size == 6
    ((repo, options),) = asked
    assert repo == "someone/animals"
    assert options["repo_type"] == "dataset"
    assert options["revision"] == "v1"
    assert options["local_files_only"] is False
    assert all(pattern.endswith(".parquet") for pattern in options["allow_patterns"]), "no script is ever fetched"
    assert "fetching someone/animals" in capsys.readouterr().err


def test_nothing_is_fetched_unless_it_is_asked_for(tmp_path: Path, opened_as: Open) -> None:
    with pytest.raises(
        UserError, match=r"hf:someone/animals-of-nowhere could not be fetched .*; set data\.download: true"
    ):
        opened_as("hf:someone/animals-of-nowhere", tmp_path)


@pytest.mark.parametrize("name", ["hf:", "hf:imagenet", "hf:a/b/c", "hf:../../etc", "hf:a/..", "hf:a/b:", "hf:-/.."])
def test_a_name_that_is_no_set_of_the_hub_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="is not a data set of the hub: write hf:OWNER/NAME"):
        find(name)


def test_columns_may_be_named_and_strings_are_classes(tmp_path: Path, opened_as: Open) -> None:
    table = {
        "picture": [{"bytes": encoded(n), "path": None} for n in range(8)],
        "kind": ["fox", "elk"] * 4,
        "patient": [f"p{n // 2}" for n in range(8)],
    }
    parquet.write_table(pa.table(table), tmp_path / "train.parquet")
    with pytest.raises(UserError, match=r"train\.parquet: no column is called image.*there is picture, kind, patient"):
        opened_as("parquet", tmp_path)
    dataset = opened_as("parquet", tmp_path, columns={"image": "picture", "label": "kind"}, split={"val": 0.25})
    assert dataset.classes == ("elk", "fox")
    assert dataset.train.groups is not None
    assert dataset.val and not set(dataset.val.groups) & set(dataset.train.groups)


WORDS = ["train", "test", "train", "Validation", "train", "train", "test", "train"]


def test_a_column_of_splits_is_followed(tmp_path: Path, opened_as: Open) -> None:
    labels = [n // 2 % 2 for n in range(8)]
    write(tmp_path / "train.parquet", labels, split=WORDS)
    dataset = opened_as("parquet", tmp_path)
    assert {name: split.images.identifiers for name, split in dataset.splits.items()} == {
        "train": ["train/0", "train/2", "train/4", "train/5", "train/7"],
        "val": ["train/3"],
        "test": ["train/1", "train/6"],
    }
    assert dataset.test and dataset.test.labels.tolist() == [labels[1], labels[6]]
    assert np.array_equal(dataset.test.images.read(1), np.asarray(Image.open(io.BytesIO(encoded(6)))))
    assert opened_as("parquet", tmp_path, columns={"split": "none"}, split={"val": 0}).train.size == 8
    write(tmp_path / "train.parquet", labels, split=["fold 1"] * 8)
    with pytest.raises(UserError, match=r"the split 'fold 1' in 'split' is none of train, val and test; .* or none"):
        opened_as("parquet", tmp_path)


def test_a_column_of_splits_may_hold_the_schema_s_names(tmp_path: Path, opened_as: Open) -> None:
    images = [{"bytes": encoded(n), "path": None} for n in range(4)]
    names = datasets.ClassLabel(names=["train", "test"])
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64"), "split": names})
    rows = {"image": images, "label": [0, 1, 1, 0], "split": [0, 0, 1, 1]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "train.parquet")
    dataset = opened_as("parquet", tmp_path, split={"val": 0})
    assert {name: split.size for name, split in dataset.splits.items()} == {"train": 2, "test": 2}


def test_a_column_of_splits_beside_files_of_splits_is_not_passed_over_in_silence(
    tmp_path: Path, opened_as: Open
) -> None:
    write(tmp_path / "train.parquet", [0, 1, 0, 1], split=["train", "test", "train", "train"])
    write(tmp_path / "test.parquet", [0, 1])
    dataset = opened_as("parquet", tmp_path, split={"val": 0})
    assert {name: split.size for name, split in dataset.splits.items()} == {"train": 4, "test": 2}
    assert "not used: column 'split' of train; the files' names say the split" in dataset.notes
    write(tmp_path / "test.parquet", [0, 1], split=["test", "test"])
    with pytest.raises(UserError, match=r"data\.columns\.split: the files below .* are of test, train already"):
        opened_as("parquet", tmp_path, columns={"split": "split"})


@pytest.mark.parametrize("blank", [None, " "])
def test_a_row_without_a_group_is_refused(tmp_path: Path, opened_as: Open, blank: str | None) -> None:
    write(tmp_path / "train.parquet", [0, 1, 0, 1], patient=["a", "b", blank, "b"])
    with pytest.raises(UserError, match=r"train\.parquet, row 2 has no 'patient'.*data\.columns\.group: none"):
        opened_as("parquet", tmp_path)
    assert opened_as("parquet", tmp_path, columns={"group": "none"}, split={"val": 0}).train.groups is None


def test_a_number_that_is_missing_is_no_group(tmp_path: Path, opened_as: Open) -> None:
    images = [{"bytes": encoded(n), "path": None} for n in range(4)]
    rows = {"image": images, "label": [0, 1] * 2, "patient": [1.0, 2.0, 1.0, float("nan")]}
    parquet.write_table(pa.table(rows), tmp_path / "train.parquet")
    with pytest.raises(UserError, match=r"row 3 has no 'patient'"):
        opened_as("parquet", tmp_path)


def test_a_set_without_a_training_label_is_refused(tmp_path: Path, opened_as: Open) -> None:
    write(tmp_path / "train.parquet", [-1, -1])
    with pytest.raises(UserError, match=r"no training image below .* has a label"):
        opened_as("parquet", tmp_path)


def test_a_path_in_the_place_of_an_image_is_not_followed(tmp_path: Path, opened_as: Open) -> None:
    table = {"image": [{"bytes": None, "path": "/etc/hostname"}] * 4, "label": [0, 1, 0, 1]}
    parquet.write_table(
        pa.table(
            table,
            pa.schema([("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])), ("label", pa.int64())]),
        ),
        tmp_path / "train.parquet",
    )
    with pytest.raises(UserError, match="row 0: its image is missing"):
        opened_as("parquet", tmp_path)


def test_broken_images_are_skipped_and_counted(tmp_path: Path, opened_as: Open) -> None:
    images = [{"bytes": encoded(n)[: 50 if n == 3 else None], "path": None} for n in range(6)]
    parquet.write_table(pa.table({"image": images, "label": [0, 1] * 3}), tmp_path / "train.parquet")
    with pytest.raises(UserError, match=r"train/3: not a readable image"):
        opened_as("parquet", tmp_path)
    dataset = opened_as("parquet", tmp_path, unreadable="skip", split={"val": 0})
    assert dataset.train.labels.tolist() == [0, 1, 0, 0, 1]
    assert dataset.notes == ("left out, unreadable: 1 (train/3)",)


def test_several_subsets_are_not_mixed(tmp_path: Path, opened_as: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """As files named by their split, and as the hub's converter lays them out: in a folder for each split."""
    write(tmp_path / "small" / "train-00000-of-00001.parquet", [0, 1, 2])
    write(tmp_path / "large" / "train" / "0000.parquet", [0, 1, 2, 0, 1])
    write(tmp_path / "large" / "test" / "0000.parquet", [2, 1])
    with pytest.raises(UserError, match=r"has several subsets, large, small: name one, hf:OWNER/NAME:SUBSET"):
        opened_as("parquet", tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda repo, **options: str(tmp_path))
    dataset = opened_as("hf:someone/animals:large", tmp_path, split={"val": 0})
    assert {name: split.size for name, split in dataset.splits.items()} == {"train": 5, "test": 2}


def test_files_of_two_words_for_a_split_are_not_mixed(tmp_path: Path, opened_as: Open) -> None:
    """The images of ``train`` are in ``trainval`` too."""
    for word in ("train", "trainval", "test"):
        write(tmp_path / f"{word}-00000-of-00001.parquet", [0, 1, 2])
    dataset = opened_as("parquet", tmp_path, split={"val": 0})
    assert {name: split.size for name, split in dataset.splits.items()} == {"train": 3, "test": 3}
    assert dataset.notes == ("left out, of no split: 1 (trainval-00000-of-00001.parquet)",)
    write(tmp_path / "testing.parquet", [0, 1, 2])
    with pytest.raises(UserError, match=r"files of both test and testing below .*; keep those of one"):
        opened_as("parquet", tmp_path)


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1" + bytes(100) + b"PAR1", b"not parquet at all"])
def test_a_file_that_is_not_parquet_is_refused_by_name(tmp_path: Path, opened_as: Open, content: bytes) -> None:
    (tmp_path / "train.parquet").write_bytes(content)
    with pytest.raises(UserError, match=r"train\.parquet is not a readable Parquet file"):
        opened_as("parquet", tmp_path)


def test_a_folder_without_a_train_file_is_refused(tmp_path: Path, opened_as: Open) -> None:
    write(tmp_path / "extra.parquet", [0, 1, 2])
    with pytest.raises(UserError, match=r"no train-\*\.parquet below .*; there is extra\.parquet"):
        opened_as("parquet", tmp_path)

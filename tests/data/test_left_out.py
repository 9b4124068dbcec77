"""What a folder holds besides its images: litter, spellings, pointers, and files that are none."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

import pytest
from data.folders import made, opened, sizes

from mlx_peft.config import schema
from mlx_peft.core.errors import UserError
from mlx_peft.data import open_dataset

LITTER = (
    *("ant/@eaDir/0.png", "@eaDir", "__MACOSX/ant", "$RECYCLE.BIN", "System Volume Information", "lost+found"),
    *("#recycle", ".Trash-1000/files", ".ipynb_checkpoints", "ant/.thumbnails", ".AppleDouble", "__pycache__", ".git"),
)


def test_litter_is_no_class_and_no_image_and_is_counted(tmp_path: Path) -> None:
    made(tmp_path, "ant", "bee", *LITTER)
    made(tmp_path / "ant", "._0.png", "Thumbs.db", ".DS_Store", "desktop.ini")
    dataset = opened(tmp_path)
    assert dataset.classes == ("ant", "bee")
    assert dataset.train.size == 4
    (note,) = dataset.notes
    images = 2 * (len(LITTER) - 1) + 1 + 1  # a file, folders of two, and the hidden one beside the images
    assert note.startswith("left out, images in hidden files, or in what systems and tools leave behind: ")
    assert f": {images} (" in note


@pytest.mark.parametrize("spellings", [("NFC", "NFD"), ("NFD", "NFC")])
def test_two_spellings_of_an_accent_are_one_class(tmp_path: Path, spellings: tuple[str, str]) -> None:
    for split, form in zip(("train", "val"), spellings, strict=True):
        made(tmp_path, *(f"{split}/{unicodedata.normalize(form, name)}" for name in ("école", "zoo")))
    made(tmp_path, *(f"train/{unicodedata.normalize(form, 'été')}" for form in spellings))
    dataset = opened(tmp_path)
    assert dataset.classes == ("zoo", "école", "été")
    assert all(unicodedata.is_normalized("NFC", name) for name in dataset.classes)
    assert sizes(dataset) == {"train": 8, "val": 4}
    assert dataset.train.labels.tolist() == [0, 0, 1, 1, 2, 2, 2, 2]
    assert dataset.train.images.read(7).shape == (8, 8, 3), "a file is found under the name that it has"


def test_the_splits_are_the_same_in_either_spelling(tmp_path: Path) -> None:
    """A set that a Mac has copied keeps the splits, and the runs, that were made of it elsewhere."""
    names = [f"{name}/{letter}{n}" for name in ("cat", "âne") for n in range(6) for letter in ("é", "f", "ë")]
    shas = []
    for form in ("NFC", "NFD"):
        root = made(tmp_path / form, *(unicodedata.normalize(form, f"{name}.png") for name in names))
        dataset = open_dataset(schema.Data(name="folder", root=root, split=schema.Split(val=0.2, test=0.2)))
        shas.append([split.sha256 for split in dataset.splits.values()])
    assert len(shas[0]) == 3
    assert shas[0] == shas[1]


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"


def test_a_refusal_says_what_was_left_out(tmp_path: Path) -> None:
    """A person who sees only that there are no images looks for the fault where it is not."""
    pool = made(tmp_path / "pool", "ant")
    root = made(tmp_path / "linked", "bee")
    (root / "ant").mkdir()
    for file in (pool / "ant").iterdir():
        (root / "ant" / file.name).symlink_to(file)
    with pytest.raises(
        UserError,
        match=r"(?s)ant: no images in this class.*copy the images .* links lead to.* root: 2 \(ant/0",
    ):
        opened(root)
    root = made(tmp_path / "phone", *(f"{name}/{n}.HEIC" for n in range(3) for name in ("ant", "bee")))
    with pytest.raises(UserError, match=r"(?s)no images.*formats that are not .* JPEG \(\.heic\): 6 \(ant/0\.HEIC"):
        opened(root)
    root = made(tmp_path / "flat", *(f"{n}.png" for n in range(3)))
    with pytest.raises(UserError, match=r"(?s)no class folders.*images outside of the class folders: 3"):
        opened(root)
    root = made(tmp_path / "one", "ant", "notes.txt")
    with pytest.raises(UserError, match=r"(?s)one class, 'ant'.*note: left out, without .*: 1 \(notes\.txt\)"):
        opened(root)


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("parquet", "train.parquet"),
        ("medmnist:breastmnist", "breastmnist.npz"),
        ("cifar10", "cifar-10-python.tar.gz"),
        ("fashion_mnist", "train-images-idx3-ubyte.gz"),
        ("svhn", "train_32x32.mat"),
        ("eurosat", "AnnualCrop/1.jpg"),
        ("folder", "ant/1.jpg"),
    ],
)
def test_a_set_of_pointers_is_refused_for_what_it_is(tmp_path: Path, name: str, file: str) -> None:
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text(POINTER)
    with pytest.raises(UserError, match=rf"(?s)Git LFS pointers and not .*: 1 \({file}\); run `git lfs pull`"):
        open_dataset(schema.Data(name=name, root=tmp_path))


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (POINTER.encode(), r"a Git LFS pointer and not the file itself: run `git lfs pull`"),
        (b"\0\0\0\x18ftypheic" + bytes(40), r"HEIC, which is not read: convert it to JPEG"),
        (b"\0\0\0\x1cftypavif" + bytes(40), r"AVIF, which is not read"),
        (bytes(128) + b"DICM" + bytes(40), r"DICOM, which is not read"),
        (b"<!DOCTYPE html><title>404", r"a web page, XML or SVG and no image"),
        (b"", r"empty"),
    ],
)
def test_what_is_called_an_image_and_is_none_is_named(tmp_path: Path, content: bytes, kind: str) -> None:
    made(tmp_path, "ant", "bee", count=4)
    for number in range(3):
        (tmp_path / "ant" / f"{number}.png").write_bytes(content)
    with pytest.raises(UserError, match=rf"ant/0\.png: not a readable image \(.*\): it is {kind}"):
        opened(tmp_path)
    dataset = opened(tmp_path, unreadable="skip")
    assert dataset.notes[0] == "left out, unreadable: 3 (ant/0.png, ant/1.png, ant/2.png)"
    assert dataset.notes[1].startswith("3 of the unreadable files: each is ")
    (tmp_path / "ant" / "3.png").write_bytes(content)
    with pytest.raises(
        UserError, match=rf"(?s)no image of class 'ant' in train can be read.*unreadable: 4 .*4 of .*{kind}"
    ):
        opened(tmp_path, unreadable="skip")


def test_names_in_notes_and_refusals_are_written_out(tmp_path: Path) -> None:
    """What a terminal would obey: notes are printed, and kept in results."""
    hostile = "a\x1b[31m\n\u202e"
    made(
        tmp_path,
        "train/ant",
        "train/bee",
        hostile,
        f"train/ant/{hostile}.txt",
        f"train/{hostile}.png",
        f"test/{hostile}",
    )
    (tmp_path / "train" / os.fsdecode(b"ant/\xff.txt")).write_text("")
    with pytest.raises(UserError, match=r"has class 'a\\x1b\[31m\\n\\u202e', which train does not") as refused:
        opened(tmp_path)
    (tmp_path / "test" / hostile).rename(tmp_path / "test" / "ant")
    notes = "\n".join(opened(tmp_path).notes)
    for text in (notes, str(refused.value)):
        assert not set("\x1b\u202e\udcff") & set(text)
    assert r"left out, folders beside train: a\x1b[31m\n\u202e" in notes
    assert r"(train/ant/a\x1b[31m\n\u202e.txt, train/ant/\xff.txt)" in notes
    assert r"images outside of the class folders: 1 (train/a\x1b[31m\n\u202e.png)" in notes

"""Which folders are splits and which are classes, in the layouts that sets are published in; and what is refused."""

from __future__ import annotations

import os
import unicodedata
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from mlx_peft.config import schema
from mlx_peft.core.errors import UserError
from mlx_peft.data import Dataset, open_dataset
from mlx_peft.data.names import split_of


def made(root: Path, *folders: str, count: int = 2) -> Path:
    """Folders of images; a name with a suffix is a file: of an image where it is called like one."""
    for number, name in enumerate(folders):
        files = [root / name] if "." in Path(name).name[1:] else [root / name / f"{n}.png" for n in range(count)]
        for place, path in enumerate(files):
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.suffix in (".png", ".jpg"):
                Image.new("RGB", (8, 8), (20 * number, 9 * place, 0)).save(path)
            else:
                path.write_text("no image")
    return root


def opened(root: Path, **data: object) -> Dataset:
    """Without a split that is held out."""
    dataset = open_dataset(schema.Data(name="folder", root=root, split=schema.Split(val=0), **data))
    return replace(dataset, notes=tuple(note for note in dataset.notes if not note.startswith("data.split.val")))


def sizes(dataset: Dataset) -> dict[str, int]:
    return {name: split.size for name, split in dataset.splits.items()}


@pytest.mark.parametrize(
    ("name", "split"),
    [
        *((name, ("train", "")) for name in ("train", "TRAIN", "Training", "training_set", "train-images", "TrainSet")),
        *((name, ("train", "")) for name in ("trainset", "train images", "trainval", "images_train", "train.data")),
        *((name, ("val", "")) for name in ("valid", "Validation", "dev_set", "eval", "valImages", "valdata")),
        *((name, ("test", "")) for name in ("test", "Testing", "test_set", "TESTSET", "test_folder")),
        *((("seg_train", ("train", "seg")), ("val2017", ("val", "2017")), ("test_tube", ("test", "tube")))),
        *((name, None) for name in ("cat", "trains", "train_val", "testament", "valley", "devil", "dataset", "images")),
    ],
)
def test_a_name_says_a_split_whatever_else_it_is_called(name: str, split: tuple[str, str] | None) -> None:
    assert split_of(name) == split


@pytest.mark.parametrize(
    ("splits", "expected"),
    [
        (("training_set", "test_set"), {"train": 4, "test": 4}),
        (("train_images", "valid_images"), {"train": 4, "val": 4}),
        (("TRAIN", "TEST", "VALIDATION"), {"train": 4, "val": 4, "test": 4}),
        (("trainset", "evalset"), {"train": 4, "val": 4}),
        (("seg_train/seg_train", "seg_test/seg_test"), {"train": 4, "test": 4}),
        (("train2017", "val2017"), {"train": 4, "val": 4}),
        (("images/train", "images/val"), {"train": 4, "val": 4}),
        (("data/archive/train", "data/archive/test"), {"train": 4, "test": 4}),
        (("train/train", "test/images"), {"train": 4, "test": 4}),
        (("train/DATASET", "test/DATASET"), {"train": 4, "test": 4}),
    ],
)
def test_splits_under_their_usual_names_are_splits(
    tmp_path: Path, splits: tuple[str, ...], expected: dict[str, int]
) -> None:
    dataset = opened(made(tmp_path, *(f"{split}/{name}" for split in splits for name in ("ant", "bee"))))
    assert dataset.classes == ("ant", "bee")
    assert sizes(dataset) == expected


def test_a_class_that_is_called_almost_like_a_split_is_a_class(tmp_path: Path) -> None:
    assert opened(made(tmp_path / "1", "test_tube", "train_station", "valley")).classes == (
        "test_tube",
        "train_station",
        "valley",
    )
    dataset = opened(made(tmp_path / "2", "test", "boat", "ship"))
    assert dataset.classes == ("boat", "ship", "test")
    assert dataset.notes == ("'test' is taken for a class, though it is called like a split",)


def test_a_split_s_own_name_comes_before_a_second_one(tmp_path: Path) -> None:
    """The images of ``trainval`` are those of ``train`` and ``val``."""
    splits = ("train", "trainval", "val", "eval")
    dataset = opened(made(tmp_path, *(f"{split}/{name}" for split in splits for name in ("ant", "bee"))))
    assert sizes(dataset) == {"train": 4, "val": 4}
    assert dataset.notes == ("left out, folders beside train: eval, trainval",)
    made(tmp_path / "alone", "trainval/ant", "trainval/bee", "eval/ant", "eval/bee")
    assert sizes(opened(tmp_path / "alone")) == {"train": 4, "val": 4}


def test_classes_that_hold_the_splits_are_classes(tmp_path: Path) -> None:
    dataset = opened(made(tmp_path, "ant/train", "ant/test", "bee/train", "bee/test", "bee/valid"))
    assert dataset.classes == ("ant", "bee")
    assert sizes(dataset) == {"train": 4, "val": 2, "test": 4}
    assert dataset.test and dataset.test.images.identifiers[0] == "ant/test/0.png"
    assert dataset.notes == ("no images of 'ant' in val",)


def test_a_folder_around_the_set_is_passed_and_said(tmp_path: Path) -> None:
    made(tmp_path / "one", "DATASET/ant", "DATASET/bee", "DATASET/notes.txt", "readme.md", "cover.png", "docs/a.pdf")
    made(tmp_path / "two", "ant", "bee")
    inside, alone = opened(tmp_path / "one"), opened(tmp_path / "two")
    assert inside.train.sha256 == alone.train.sha256, "the set is the same wherever data.root begins"
    assert inside.notes == (
        "left out, without the suffix of an image: 2 (readme.md, notes.txt)",
        "left out, images outside of the class folders: 1 (cover.png)",
        "the set is taken to be the folder DATASET, since no other holds class folders",
    )


def test_a_folder_of_images_in_each_class_is_no_level(tmp_path: Path) -> None:
    dataset = opened(made(tmp_path, "ant/images", "bee/bee", "cat/JPEG/images"))
    assert dataset.classes == ("ant", "bee", "cat")
    assert dataset.notes == ()


def test_a_class_whose_images_all_lie_deeper_is_noted(tmp_path: Path) -> None:
    dataset = opened(made(tmp_path, "ant/red", "ant/black", "bee"))
    assert dataset.classes == ("ant", "bee")
    assert dataset.notes == ("all images of class 'ant' lie in folders in it: 'black', 'red'",)


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (
            ("animals/ant", "animals/bee", "vehicles/car"),
            r"every image lies a folder below its class: 'animals' holds 'ant', 'bee', 'vehicles' holds 'car'\. Where "
            r"'animals', 'vehicles' are the classes, set data\.variant: outer; .* set data\.variant: inner",
        ),
        (("train/a/ant", "train/b/bee", "test/a/ant"), r"every image lies a folder below its class: 'a' holds 'ant'"),
        (("ill/images", "ill/masks", "well/images", "well/masks"), r"'ill' holds 'images', 'masks'"),
        (
            ("ant", "bee", "copy/ant", "copy/bee"),
            r"copy: the folders 'ant', 'bee' in it are called like the class",
        ),
        (("ant/train", "ant/test", "bee"), r"ant: 'test', 'train' in it are splits: set data\.root to it, or"),
        (
            ("1/train/ant", "1/test/ant", "2/train/bee", "2/test/bee"),
            r"'1', '2' have splits of their own; set data",
        ),
        (
            ("a_train/x", "a_test/x", "b_train/x", "b_test/x"),
            r"a_test, a_train and b_test, b_train are splits of",
        ),
        (
            ("train", "test", "labels.csv"),
            r"test, train are splits and not classes.*; there is labels\.csv: data\.n",
        ),
        (("train", "test", "bus"), r"test, train are splits and not classes"),
        (("train", "test1"), r"test1, train are splits and not classes"),
        (("train_1", "train_2", "val"), r"train_1, train_2, val are splits and not classes"),
        (("train1/ant", "train2/ant", "train/bee", "training/bee"), r"both train and training are there; keep one"),
        (
            ("seg_test/a", "seg_test/b", "pred"),
            r"seg_test is called like a split, and no folder beside it is called like train",
        ),
        (("train/ant", "train/bee", "test/unknown"), r"test: has class 'unknown', .*have no labels, put them into it"),
        (("images/a.png", "images/b.png"), r"images: no class folders; each class is a folder of images"),
        (
            ("train/ant", "train/bee", "val/Ant", "val/bee"),
            r"has class 'Ant', which train does not; did you mean 'ant'",
        ),
    ],
)
def test_folders_at_another_level_are_refused(tmp_path: Path, folders: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        opened(made(tmp_path, *folders))


def test_a_variant_says_which_folder_is_the_class(tmp_path: Path) -> None:
    made(tmp_path, "animals/ant", "animals/bee/images", "vehicles/car", "more/ant")
    outer, inner = opened(tmp_path, variant="outer"), opened(tmp_path, variant="inner")
    assert outer.classes == ("animals", "more", "vehicles")
    assert inner.classes == ("ant", "bee", "car")
    assert inner.train.labels.tolist() == [0, 0, 0, 0, 1, 1, 2, 2]
    assert outer.notes[0].startswith(
        "data.variant: outer: folders above or below the classes are not kept in one split"
    )
    made(tmp_path, "vehicles/train")
    with pytest.raises(UserError, match=r"vehicles/train is called like a split: set data\.root"):
        opened(tmp_path, variant="inner")


def test_a_split_may_lack_a_class_or_labels_but_not_have_more(tmp_path: Path) -> None:
    """As in a table."""
    made(tmp_path, "train/ant", "train/bee", "val/ant", "test", "train/0.png")
    (tmp_path / "val" / "bee").mkdir()
    dataset = opened(tmp_path)
    assert sizes(dataset) == {"train": 4, "val": 2}
    assert dataset.notes == (
        "left out, images outside of the class folders: 1 (train/0.png)",
        "left out, without labels: test, 2 images",
        "no images of 'bee' in val",
    )
    for image in (tmp_path / "test").iterdir():
        image.unlink()
    assert "left out, without images: test" in opened(tmp_path).notes
    made(tmp_path, "val/cat")
    with pytest.raises(UserError, match=r"val: has class 'cat', which train does not"):
        opened(tmp_path)


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
    with pytest.raises(UserError, match=rf"(?s)no readable images of class 'ant'.*unreadable: 4 .*4 of .*{kind}"):
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

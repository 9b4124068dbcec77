"""Which folders are splits and which are classes, in the layouts that sets are published in."""

from __future__ import annotations

from pathlib import Path

import pytest
from data.folders import made, opened, sizes

from mlx_peft.core.errors import UserError
from mlx_peft.data.names import split_of


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
        (
            ("train1/ant", "train2/ant", "train/bee", "training/bee"),
            r"train and training are folders for the same split; keep one",
        ),
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

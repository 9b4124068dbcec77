"""Folders that cannot be a set: each is refused by what is wrong with it."""

from __future__ import annotations

from pathlib import Path

import pytest
from data.class_trees import opened, save, tree

from mlx_peft.core.errors import UserError


def missing(root: Path) -> None:
    root.rmdir()


def empty(root: Path) -> None:
    pass


def loose_images(root: Path) -> None:
    save(root / "0.jpg")


def an_empty_class(root: Path) -> None:
    tree(root, "ant", "cat")
    (root / "dog").mkdir()


def a_class_of_broken_images(root: Path) -> None:
    tree(root, "ant", "cat")
    (root / "dog").mkdir()
    (root / "dog" / "0.jpg").write_bytes(b"")


def a_validation_split_with_one_more(root: Path) -> None:
    tree(root / "train", "ant", "cat")
    tree(root / "val", "ant", "cat", "dog", "elk")


def two_validation_folders(root: Path) -> None:
    for name in ("train", "val", "validation"):
        tree(root / name, "ant", "cat")


def two_folders_of_a_word_each(root: Path) -> None:
    for name in ("Train", "val", "Valid"):
        tree(root / name, "ant", "cat")


def no_training_split(root: Path) -> None:
    tree(root / "Test", "ant", "cat")
    tree(root / "dev", "ant", "cat")


def a_training_split_that_leads_out(root: Path) -> None:
    tree(root / "test", "ant", "cat")
    (root / "train").symlink_to(tree(root.parent / "elsewhere", "ant", "cat"))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (missing, r"data\.root: .*images is not a folder"),
        (empty, r"images: no class folders"),
        (loose_images, r"images: no class folders"),
        (an_empty_class, r"images/dog: no images in this class folder"),
        (a_class_of_broken_images, r"images: no image of class 'dog' in train can be read"),
        (a_validation_split_with_one_more, r"images/val: has classes 'dog', 'elk', which train does not"),
        (two_validation_folders, r"images: val and validation are folders for the same split"),
        (two_folders_of_a_word_each, r"images: Valid and val are folders for the same split"),
        (no_training_split, r"images: Test, dev are splits and not classes, and there is no train/CLASS/IMAGE\.jpg"),
        (a_training_split_that_leads_out, r"(?s)images: test are splits .*left out, links to folders .*: 1 \(train\)"),
    ],
)
def test_a_folder_that_cannot_be_right_is_refused(tmp_path: Path, damage: object, message: str) -> None:
    root = tmp_path / "images"
    root.mkdir()
    damage(root)  # type: ignore[operator]
    with pytest.raises(UserError, match=message):
        opened(root, unreadable="skip")

"""Class folders: both layouts, what is left out, and what is refused."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from data.class_trees import opened, save, tree
from PIL import Image

from mlx_peft.config import schema
from mlx_peft.core.errors import UserError
from mlx_peft.data import find, open_dataset, tried
from mlx_peft.data.check import survey
from mlx_peft.data.opening import open_entry


def test_one_tree_is_split(tmp_path: Path) -> None:
    dataset = opened(tree(tmp_path, "cat", "ant"), test=0.25)
    assert dataset.classes == ("ant", "cat")
    assert [split and split.size for split in (dataset.train, dataset.val, dataset.test)] == [4, 2, 2]
    assert list(dataset.train.images.identifiers) == sorted(dataset.train.images.identifiers)
    assert dataset.notes == ()


def test_the_split_does_not_depend_on_where_the_folder_lies(tmp_path: Path) -> None:
    one, two = (opened(tree(tmp_path / name, "ant", "cat")) for name in ("one", "elsewhere/two"))
    assert one.train.sha256 == two.train.sha256


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [
        ("train", "val", "test"),
        ("train", "validation", "test"),
        ("Train", "VALID", "Test"),
        ("training", "dev", "Testing"),
    ],
)
def test_folders_for_the_splits_are_used(tmp_path: Path, train: str, val: str, test: str) -> None:
    for name, count in ((train, 5), (val, 2), (test, 3)):
        tree(tmp_path / name, "ant", "cat", count=count)
    dataset = opened(tmp_path, val=0.5)
    assert [split and split.size for split in (dataset.train, dataset.val, dataset.test)] == [10, 4, 6]
    assert dataset.test and dataset.test.images.identifiers[0] == f"{test}/ant/0.jpg"
    assert dataset.notes == ("data.split.val is not used: the set has its own val split",)
    default = schema.Split.model_fields["val"].default
    assert opened(tmp_path, val=default).notes == (), "a finished run's configuration writes the defaults down"
    assert open_dataset(schema.Data(name="folder", root=tmp_path)).notes == ()


def test_a_missing_validation_folder_is_carved_out_of_train(tmp_path: Path) -> None:
    tree(tmp_path / "train", "ant", "cat", count=8)
    tree(tmp_path / "test", "ant", "cat", count=2)
    dataset = opened(tmp_path, val=0.25, test=0.5)
    assert [split and split.size for split in (dataset.train, dataset.val, dataset.test)] == [12, 4, 4]


def test_a_set_of_one_class_is_refused(tmp_path: Path) -> None:
    tree(tmp_path, "ant")
    with pytest.raises(UserError, match=r"one class, 'ant', and nothing .*: is data\.root a level too high"):
        opened(tmp_path)


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    assert opened(tree(tmp_path, "boat", "train")).classes == ("boat", "train")


def test_images_at_any_depth_and_with_any_suffix_are_taken(tmp_path: Path) -> None:
    save(tmp_path / "ant" / "deep" / "er" / "1.PNG")
    save(tmp_path / "ant" / "2.webp")
    save(tmp_path / "cat" / "une forêt 3.tiff")
    dataset = opened(tmp_path, val=0)
    assert dataset.train.images.identifiers == ("ant/2.webp", "ant/deep/er/1.PNG", "cat/une forêt 3.tiff")
    assert dataset.train.labels.tolist() == [0, 0, 1]
    assert dataset.train.images.read(2).shape == (10, 12, 3)


def test_hidden_files_are_ignored_and_others_are_noted(tmp_path: Path) -> None:
    tree(tmp_path, "ant", "cat")
    (tmp_path / ".cache").mkdir()
    save(tmp_path / "ant" / ".thumbnail.jpg")
    (tmp_path / "ant" / "readme.txt").write_text("four ants")
    dataset = opened(tmp_path, val=0)
    assert dataset.train.size == 8
    assert dataset.notes == (
        "left out, without the suffix of an image: 1 (ant/readme.txt)",
        "left out, images in hidden files, or in what systems and tools leave behind: 1 (ant/.thumbnail.jpg)",
    )


def test_links_out_of_the_root_are_not_followed(tmp_path: Path) -> None:
    secret = save(tmp_path / "elsewhere" / "secret.jpg")
    root = tree(tmp_path / "root", "ant", "cat")
    (root / "ant" / "out.jpg").symlink_to(secret)
    (root / "ant" / "folder").symlink_to(secret.parent)
    (root / "ant" / "inside.jpg").symlink_to(root / "cat" / "0.jpg")
    (root / "dog").symlink_to(secret.parent)
    dataset = opened(root, val=0)
    assert dataset.classes == ("ant", "cat")
    assert "ant/inside.jpg" in dataset.train.images.identifiers
    assert dataset.train.size == 9
    (note,) = dataset.notes
    assert note.startswith("left out, links to folders or out of the root: 3")
    assert all(name in note for name in ("dog", "ant/out.jpg", "ant/folder"))


def test_a_split_that_is_a_link_is_used_inside_the_root_and_noted_outside(tmp_path: Path) -> None:
    root, elsewhere = tmp_path / "root", tree(tmp_path / "elsewhere", "ant", "cat")
    tree(root / "train", "ant", "cat")
    tree(root / "other", "ant", "cat", count=2)
    (root / "val").symlink_to(root / "other")
    (root / "test").symlink_to(elsewhere)
    (root / "train" / "fox").symlink_to(elsewhere / "ant")
    dataset = opened(root)
    assert dataset.val
    assert dataset.val.images.identifiers[0] == "val/ant/0.jpg"
    assert dataset.test is None
    assert dataset.notes == (
        "left out, links to folders or out of the root: 2 (test, train/fox)",
        "left out, folders beside train: other",
        "data.split.val is not used: the set has its own val split",
    )


def test_folders_beside_the_splits_are_noted(tmp_path: Path) -> None:
    tree(tmp_path / "train", "ant", "cat")
    tree(tmp_path / "unlabelled", "x")
    assert opened(tmp_path).notes == ("left out, folders beside train: unlabelled",)


def test_broken_images_are_skipped_and_counted_where_allowed(tmp_path: Path) -> None:
    tree(tmp_path, "ant", "cat")
    for number in range(4):
        (tmp_path / "ant" / f"broken{number}.jpg").write_bytes(b"\xff\xd8\xff nothing")
    dataset = opened(tmp_path, val=0, unreadable="skip")
    assert dataset.train.size == 8
    assert dataset.notes == ("left out, unreadable: 4 (ant/broken0.jpg, ant/broken1.jpg, ant/broken2.jpg, ...)",)
    (tmp_path / "ant" / "broken0.jpg").unlink()
    assert opened(tmp_path, val=0, unreadable="skip").train.sha256 == dataset.train.sha256


@pytest.mark.parametrize("group_by", [None, "duplicates"])
def test_a_skipped_image_is_missing_in_its_split_and_the_others_stay_in_theirs(
    tmp_path: Path, group_by: Literal["duplicates"] | None
) -> None:
    rng = np.random.default_rng(0)
    for path in (tmp_path / name / f"{number}.png" for name in ("ant", "cat") for number in range(15)):
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)

    def identifiers(unreadable: Literal["refuse", "skip"]) -> dict[str, list[str]]:
        split = schema.Split(val=0.2, test=0.2, group_by=group_by)
        dataset = open_dataset(schema.Data(name="folder", root=tmp_path, split=split, unreadable=unreadable))
        return {name: list(part.images.identifiers) for name, part in dataset.splits.items()}

    whole = identifiers("refuse")
    for before in whole.values():
        content = (tmp_path / before[0]).read_bytes()
        (tmp_path / before[0]).write_bytes(b"\xff\xd8\xff nothing")
        for _ in range(2):  # the second time from memory
            now = identifiers("skip")
            assert now == {name: [one for one in part if one != before[0]] for name, part in whole.items()}
        (tmp_path / before[0]).write_bytes(content)


def test_an_image_too_narrow_to_be_evaluated_counts_as_broken(tmp_path: Path) -> None:
    tree(tmp_path, "ant", "cat")
    Image.new("RGB", (2, 30_000)).save(tmp_path / "ant" / "thread.png")
    with pytest.raises(UserError, match=r"ant/thread\.png: .*2 x 30000: .* crop it(?s:.*)data\.unreadable: skip"):
        opened(tmp_path, val=0)
    assert opened(tmp_path, val=0, unreadable="skip").notes == ("left out, unreadable: 1 (ant/thread.png)",)
    found = survey(open_entry(find("folder"), schema.Data(name="folder", root=tmp_path), decode=False), threads=1)
    assert [found.named(row)["image"] for row in found.broken] == ["ant/thread.png"]


def test_broken_images_are_refused_by_name_on_opening(tmp_path: Path) -> None:
    tree(tmp_path, "ant", "cat")
    for number in range(tried.EXAMPLES + 2):
        (tmp_path / "ant" / f"broken{number}.png").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"(?s)ant/broken0\.png: not a readable image.*and 2 more.*unreadable: skip"):
        opened(tmp_path)


def test_a_broken_image_of_a_large_set_is_refused_by_name_when_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tried, "CHECKED", 0)
    tree(tmp_path, "ant", "cat")
    (tmp_path / "ant" / "broken.png").write_bytes(b"nothing")
    images = opened(tmp_path, val=0).train.images
    with pytest.raises(UserError, match=r"ant/broken\.png: not a readable image.*data\.unreadable: skip"):
        images.read(list(images.identifiers).index("ant/broken.png"))


def test_the_order_does_not_depend_on_the_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = opened(tree(tmp_path, "ant", "cat", count=9), val=0).train.images.identifiers
    listed = os.scandir
    rng = np.random.default_rng(0)

    class Shuffled:
        def __init__(self, path: object) -> None:
            with listed(path) as entries:  # type: ignore[call-overload]
                self.entries = list(entries)
            rng.shuffle(self.entries)

        def __enter__(self) -> Shuffled:
            return self

        def __exit__(self, *_: object) -> None: ...

        def __iter__(self) -> Shuffled:
            return self

        def __next__(self) -> os.DirEntry[str]:
            if not self.entries:
                raise StopIteration
            return self.entries.pop()

        def close(self) -> None: ...

    monkeypatch.setattr(os, "scandir", Shuffled)
    assert opened(tmp_path, val=0).train.images.identifiers == expected

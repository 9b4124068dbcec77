"""Images that turn out broken while a large set is read: their batch has one less, and all else stays as it was."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mlx_peft.config import schema
from mlx_peft.core.errors import UserError
from mlx_peft.data import Batch, Dataset, eval_batches, open_dataset, train_batches, train_features, tried
from mlx_peft.data.leftout import unread_notes
from mlx_peft.data.unread import FEW
from mlx_peft.vit.architecture import Preprocessing

SIZE, IMAGES = 8, 24
RECIPE = Preprocessing(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), crop_pct=1.0)
Break = Callable[[int], None]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for number in range(IMAGES):
        folder = tmp_path / "images" / ("ant", "bee")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (SIZE, SIZE, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02}.png")
    return tmp_path / "images"


@pytest.fixture
def opened(root: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Dataset]:
    """Opens the images as a set too large to be tried."""
    monkeypatch.setattr(tried, "CHECKED", 0)
    return lambda **options: open_dataset(config(root, **options))


def config(root: Path, **options: object) -> schema.Data:
    values = {"name": "folder", "root": str(root), "batch_size": 10, "split": {"val": 0, "test": 0}} | options
    return schema.Data.model_validate(values)


def batches(dataset: Dataset, root: Path, **options: object) -> list[Batch]:
    data, where = config(root, **options), {"seed": 0, "epoch": 0, "num_classes": 2, "smoothing": 0.1}
    return list(train_batches(dataset.train, data, RECIPE, SIZE, **where))  # type: ignore[arg-type]


def broken(root: Path, dataset: Dataset, row: int) -> None:
    (root / dataset.train.images.identifiers[row]).write_bytes(b"nothing")


def test_a_broken_image_is_left_out_of_its_batch_and_no_other_batch_changes(opened, root: Path) -> None:
    whole = batches(opened(), root)
    lost = int(whole[1].rows[3])
    dataset = opened()
    broken(root, dataset, lost)
    first, second, third = batches(dataset, root)
    for batch, before in ((first, whole[0]), (third, whole[2])):
        assert np.array_equal(batch.images, before.images)
        assert np.array_equal(batch.targets, before.targets)
    left = np.delete(np.arange(10), 3)
    assert second.count == 9
    assert np.array_equal(second.rows, whole[1].rows[left])
    assert np.array_equal(second.images[:9], whole[1].images[left])
    assert np.array_equal(second.targets[:9], whole[1].targets[left])
    assert not second.images[9].any()
    assert second.targets[9] == -1
    (found,) = dataset.unread.of("train")
    assert found.image == dataset.train.images.identifiers[lost]
    assert "not a readable image" in found.reason
    assert "data.unreadable" not in found.reason
    assert unread_notes(dataset.unread) == (
        f"left out, unreadable in train: 1 ({found.image}); they count in no loss and no metric",
    )


def test_what_is_mixed_is_mixed_with_images_that_are_there(opened, root: Path) -> None:
    mixing = {"augment": {"mixup": 0.8}, "class_weights": "balanced"}
    dataset = opened()
    broken(root, dataset, int(batches(opened(), root)[0].rows[0]))
    (first, *_) = batches(dataset, root, **mixing)
    assert first.count == 9
    assert (first.targets[:9] > 0).any(axis=1).all()
    assert not first.targets[9].any()
    assert first.weight == pytest.approx(9, rel=0.2)  # what nine images count, and not ten: classes weigh about alike


def test_an_image_without_features_is_left_out_too(opened, root: Path) -> None:
    train, there = opened().train, np.ones(IMAGES, bool)
    there[5] = False
    features = np.arange(IMAGES, dtype=np.float32)[:, None]
    found = list(train_features(train, features, there, config(root), seed=0, epoch=0))
    assert sorted(row for batch in found for row in batch.rows) == [row for row in range(IMAGES) if row != 5]
    assert all(np.array_equal(batch.images[: batch.count, 0], batch.rows) for batch in found)


def test_the_splits_are_those_of_the_files_that_are_listed(opened, root: Path) -> None:
    before = opened(split={"val": 0.25, "test": 0.25})
    for split in (before.train, before.val, before.test):
        (root / split.images.identifiers[0]).write_bytes(b"nothing")
    for unreadable in ("refuse", "skip"):
        now = opened(split={"val": 0.25, "test": 0.25}, unreadable=unreadable)
        assert {name: split.sha256 for name, split in now.splits.items()} == {
            name: split.sha256 for name, split in before.splits.items()
        }
    (batch,) = eval_batches(now.test, config(root), RECIPE, SIZE)
    assert batch.count == now.test.size - 1
    assert now.unread.splits == ["test"]


def test_a_disk_that_is_gone_is_no_matter_of_single_files(opened, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = opened()
    for row in range(IMAGES):
        broken(root, dataset, row)
    with pytest.raises(UserError, match=r"train: none of the 10 images of a batch can be read \(.*is the disk still"):
        batches(dataset, root)
    monkeypatch.setattr("mlx_peft.data.unread.FEW", 3)
    with pytest.raises(UserError, match=r"train: 4 of an epoch's 24 images cannot be read"):
        batches(opened(), root, batch_size=4)
    assert IMAGES < FEW


def test_a_small_set_is_refused_as_ever(root: Path) -> None:
    dataset = open_dataset(config(root))
    broken(root, dataset, 0)
    with pytest.raises(UserError, match=r"not a readable image.*data\.unreadable: skip"):
        batches(dataset, root)

"""Batches: the same bytes whatever the threads and wherever an epoch is entered, and a clean end."""

from __future__ import annotations

import numpy as np
import pytest
from data.pipelines import AUGMENTS, BICUBIC, BILINEAR, CLASSES, content, data, train

from mlx_peft.config import schema
from mlx_peft.data import (
    Split,
    eval_batches,
    eval_features,
    eval_image,
    resize,
    steps_per_epoch,
    train_batches,
    train_features,
)
from mlx_peft.vit.architecture import Preprocessing


@pytest.mark.one_in(2)
@pytest.mark.parametrize("preprocessing", [BILINEAR, BICUBIC], ids=["bilinear", "bicubic"])
@pytest.mark.parametrize("augment", AUGMENTS)
@pytest.mark.parametrize("kind", ["files", "arrays"])
def test_the_bytes_do_not_depend_on_the_threads(
    request: pytest.FixtureRequest, kind: str, augment: str, preprocessing: Preprocessing
) -> None:
    split = request.getfixturevalue(kind)
    one, two, eight = (content(train(split, data(augment, threads=n), preprocessing)) for n in (1, 2, 8))
    assert one == two == eight


@pytest.mark.parametrize("augment", ["random_resized", "randaugment", "jitter"])
@pytest.mark.parametrize("kind", ["files", "arrays"])
def test_an_epoch_entered_in_the_middle_goes_on_as_it_would_have(
    request: pytest.FixtureRequest, kind: str, augment: str
) -> None:
    split = request.getfixturevalue(kind)
    whole = content(train(split, data(augment), epoch=3))
    for start in range(len(whole) + 1):
        assert content(train(split, data(augment), epoch=3, start=start)) == whole[start:]


def test_copies_of_an_image_differ_and_are_the_same_again(arrays: Split) -> None:
    config = data("jitter", batch_size=9)
    numbered = Split("train", arrays.images, np.arange(37))
    batches = train(numbered, config)
    assert [batch.count for batch in batches] == [9, 9, 9, 9, 1]
    for batch in batches[:4]:
        assert (batch.targets.reshape(3, 3) == batch.targets[::3, None]).all()
        assert len({image.tobytes() for image in batch.images}) == 9
    assert content(batches) == content(train(numbered, config))


def test_mixed_batches_have_soft_targets_and_evaluation_has_not(arrays: Split) -> None:
    config = data("randaugment")
    batches = train(arrays, config)
    for batch in batches:
        assert (batch.targets.dtype, batch.targets.shape) == (np.float32, (8, CLASSES))
        np.testing.assert_allclose(batch.targets[: batch.count].sum(1), 1, rtol=1e-6)
        assert not batch.targets[batch.count :].any()
        assert not batch.images[batch.count :].any()
    assert next(eval_batches(arrays, config, BICUBIC, 32)).targets.dtype == np.int32
    with pytest.raises(ValueError, match="num_classes"):
        train(arrays, config, num_classes=None)


def test_each_image_comes_once_an_epoch_with_its_label(arrays: Split) -> None:
    assert steps_per_epoch(arrays, 8) == 5
    batches = train(arrays, data())
    assert [batch.count for batch in batches] == [8, 8, 8, 8, 5]
    seen = {}
    for batch in batches:
        for image, target in zip(batch.images[: batch.count], batch.targets[: batch.count], strict=True):
            seen[image.tobytes()] = target
    assert seen == {arrays.images.read(n).tobytes(): arrays.labels[n] for n in range(37)}


def test_a_batch_has_always_the_same_form(files: Split) -> None:
    for batch in (*train(files, data("random_resized")), *eval_batches(files, data(), BICUBIC, 32)):
        assert batch.images.shape == (8, 32, 32, 3)
        assert batch.images.dtype == np.uint8
        assert batch.images.flags.c_contiguous
        assert batch.targets.dtype == np.int32
        assert (batch.targets[batch.count :] == -1).all()
        assert (batch.targets[: batch.count] >= 0).all()
        assert not batch.images[batch.count :].any()


@pytest.mark.parametrize("augment", ["none", "randaugment", "jitter"])
@pytest.mark.parametrize("kind", ["files", "arrays"])
def test_a_batch_larger_than_the_data_is_one_of_all_its_images(
    request: pytest.FixtureRequest, kind: str, augment: str
) -> None:
    """The very bytes of one that is just as large, mixed rows among them: nothing is made that only fills it up."""
    split = request.getfixturevalue(kind)
    (batch,) = train(split, data(augment, batch_size=2**20))
    assert (len(batch.images), len(batch.targets), batch.count) == (37, 37, 37)
    assert content([batch]) == content(train(split, data(augment, batch_size=37)))
    (seen,) = eval_batches(split, data(batch_size=2**20), BICUBIC, 32)
    assert content([seen]) == content(list(eval_batches(split, data(batch_size=37), BICUBIC, 32)))


def test_a_batch_larger_than_the_data_can_still_be_parted(arrays: Split) -> None:
    (batch,) = train(arrays, data(batch_size=2**20), parts=5)
    assert (len(batch.images), batch.count) == (40, 37)
    assert [len(batch.images) for batch in train(arrays, data(batch_size=8), parts=4)] == [8] * 5
    pixels, there = np.zeros((37, 3), np.float32), np.ones(37, bool)
    config = data(batch_size=2**20)
    (features,) = train_features(arrays, pixels, there, config, seed=0, epoch=0, parts=5)
    assert features.images.shape == (40, 3)
    (features,) = eval_features(arrays, pixels, there, config)
    assert features.images.shape == (37, 3)


def test_epochs_and_seeds_differ(arrays: Split) -> None:
    epochs = [content(train(arrays, data("flip"), seed=seed, epoch=epoch)) for seed in (0, 1) for epoch in (0, 1)]
    assert len({epoch[0] for epoch in epochs}) == 4


def test_an_image_is_augmented_by_its_index_and_not_by_its_place(arrays: Split) -> None:
    def by_label(split: Split, batch_size: int) -> dict[int, bytes]:
        batches = train(split, data("random_resized", batch_size))
        rows = ((batch.images[n], batch.targets[n]) for batch in batches for n in range(batch.count))
        return {int(target): image.tobytes() for image, target in rows}

    numbered = Split("train", arrays.images, np.arange(37))
    assert by_label(numbered, 8) == by_label(numbered, 5)


def test_about_half_of_the_images_are_flipped(arrays: Split) -> None:
    numbered = Split("train", arrays.images, np.arange(37))
    flipped = 0
    for epoch in range(10):
        for batch in train(numbered, data("flip"), epoch=epoch):
            for image, target in zip(batch.images[: batch.count], batch.targets, strict=False):
                stored = arrays.images.read(int(target))
                assert np.array_equal(image, stored) or np.array_equal(image, stored[:, ::-1])
                flipped += not np.array_equal(image, stored)
    assert 130 < flipped < 240  # 370 draws: six standard deviations


def test_small_arrays_cross_at_their_stored_size(arrays: Split) -> None:
    assert train(arrays, data("padded"))[0].images.shape == (8, 12, 10, 3)
    assert train(arrays, data("random_resized"))[0].images.shape == (8, 32, 32, 3)
    assert next(eval_batches(arrays, data(), BICUBIC, 32)).images.shape == (8, 12, 10, 3)


def test_evaluation_keeps_the_order_and_follows_the_recipe(files: Split) -> None:
    batches = list(eval_batches(files, data(threads=8), BICUBIC, 32))
    images = np.concatenate([batch.images[: batch.count] for batch in batches])
    expected = np.stack([eval_image(files.images.read(n), BICUBIC, 32) for n in range(37)])
    assert np.array_equal(images, expected)
    assert np.concatenate([batch.targets for batch in batches])[:37].tolist() == files.labels.tolist()


def test_the_faster_library_changes_no_pixel(files: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    config = data("random_resized", batch_size=37)
    fast = [train(files, config, recipe)[0].images for recipe in (BILINEAR, BICUBIC)]
    assert resize._cykooz() is not None, "it is installed with the tests"
    monkeypatch.setattr(resize, "_cykooz", lambda: None)
    slow = [train(files, config, recipe)[0].images for recipe in (BILINEAR, BICUBIC)]
    assert all(np.array_equal(*both) for both in zip(fast, slow, strict=True))


@pytest.mark.parametrize("start", [0, 2, 4, 5])
@pytest.mark.parametrize("options", [{}, {"sampling": "class"}, {"class_weights": "balanced"}], ids=str)
def test_batches_of_features_stand_for_those_of_images(arrays: Split, start: int, options: dict[str, str]) -> None:
    config = schema.Data(name="arrays", batch_size=8, threads=1, **options)
    uneven = Split("train", arrays.images, np.minimum(arrays.labels, np.arange(37) % 5))
    pixels = np.stack([arrays.images.read(index) for index in range(arrays.size)]).astype(np.float32)
    where = {"seed": 3, "epoch": 1, "start": start, "num_classes": CLASSES}
    there = np.ones(37, bool)
    pairs = [
        (train_features(uneven, pixels, there, config, **where), train_batches(uneven, config, BICUBIC, 16, **where)),
        (eval_features(uneven, pixels, there, config), eval_batches(uneven, config, BICUBIC, 16)),
    ]
    for features, images in pairs:
        found, expected = list(features), list(images)
        assert len(found) == len(expected)
        for ours, theirs in zip(found, expected, strict=True):
            assert ours.images.dtype == np.float32
            assert ours.count == theirs.count
            np.testing.assert_array_equal(ours.images, theirs.images)
            np.testing.assert_array_equal(ours.targets, theirs.targets)

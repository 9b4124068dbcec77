"""Mixup and CutMix against timm's, with timm's own random numbers in place of ours and without."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from timm.data.mixup import Mixup, rand_bbox

from mlx_peft.config import schema
from mlx_peft.data.mix import Targets, cut_box, mix
from mlx_peft.tasks.single_label import SINGLE_LABEL

CLASSES = 5
ROUNDING = 0.51
"""Pixels are whole levels again after they were mixed."""


def batch(size: int = 6, side: int = 20) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (size, side, side + 3, 3), np.uint8)
    labels = rng.integers(0, CLASSES, size)
    return images, labels, np.eye(CLASSES, dtype=np.float32)[labels]


def mixed(config: schema.Augment, step: int, count: int = 6) -> tuple[np.ndarray, np.ndarray]:
    images, _, targets = batch()
    mix(images, targets, count, config, 0, 0, step)
    return images, targets


@pytest.mark.parametrize("options", [{"mixup": 0.8}, {"cutmix": 1.0}], ids=str)
def test_pixels_and_targets_are_timms_for_the_same_draws(
    options: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """timm draws by NumPy's global functions: here they hand out what our generator draws."""
    images, labels, _ = batch()
    for step in range(30):
        rng = np.random.default_rng([0, 0, step, 3])
        rng.random()  # whether the batch is mixed, and by what: timm asks only where there is a choice
        rng.random()
        monkeypatch.setattr(np.random, "rand", lambda: 0.0)
        monkeypatch.setattr(np.random, "beta", rng.beta)
        monkeypatch.setattr(np.random, "randint", lambda low, high, size=None, rng=rng: rng.integers(low, high))
        theirs = Mixup(options.get("mixup", 0), options.get("cutmix", 0), label_smoothing=0, num_classes=CLASSES)
        pixels = torch.from_numpy(images.transpose(0, 3, 1, 2).astype(np.float64).copy())
        pixels, soft = theirs(pixels, torch.from_numpy(labels))
        ours, targets = mixed(schema.Augment(**options), step)
        assert np.abs(ours - pixels.numpy().transpose(0, 2, 3, 1)).max() <= ROUNDING
        np.testing.assert_allclose(targets, soft.numpy(), atol=1e-6)


@pytest.mark.parametrize("kept", [0.0, 0.1, 0.5, 0.99, 1.0])
def test_a_box_is_timms(kept: float, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(50):
        rng, other = np.random.default_rng(seed), np.random.default_rng(seed)
        monkeypatch.setattr(np.random, "randint", lambda low, high, size=None, rng=other: rng.integers(low, high))
        assert cut_box(rng, (20, 31), kept) == tuple(map(int, rand_bbox((20, 31), kept)))


def test_where_both_are_on_batches_have_one_or_the_other_in_their_shares() -> None:
    config = schema.Augment(mixup=0.8, cutmix=1.0, mix_probability=0.8, cutmix_share=0.25)
    original, _, one_hot = batch()
    plain = cut = 0
    for step in range(400):
        images, targets = mixed(config, step)
        if np.array_equal(images, original):
            plain += np.array_equal(targets, one_hot)
        elif ((images == original) | (images == original[::-1])).all():
            cut += 1
    assert 45 < plain < 125  # a fifth and what mixing leaves as it was; five standard deviations of 400 draws
    assert 45 < cut < 115


def test_only_rows_with_an_image_are_mixed_and_the_middle_one_is_its_own_counterpart() -> None:
    original, _, one_hot = batch()
    for options in ({"mixup": 1.0}, {"cutmix": 1.0}):
        for step in range(20):
            images, targets = mixed(schema.Augment(**options), step, count=5)
            assert np.array_equal(images[5], original[5])
            assert np.array_equal(targets[5], one_hot[5])
            assert np.array_equal(images[2], original[2])
            np.testing.assert_allclose(targets[2], one_hot[2], atol=1e-6)


def test_the_draw_is_of_seed_epoch_and_step() -> None:
    results = set()
    for place in ((0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0), (0, 0, 0)):
        images, _, targets = batch()
        mix(images, targets, 6, schema.Augment(mixup=1.0), *place)
        results.add(images.tobytes())
    assert len(results) == 4


def test_targets_of_a_weighted_loss_add_up_to_what_an_image_counts() -> None:
    labels = np.array([0, 0, 0, 1, 2, 2])
    config = schema.Data(name="folder", batch_size=4, class_weights="balanced")
    targets = Targets(SINGLE_LABEL, labels, config, 3).batch(np.array([0, 3, 4]))
    np.testing.assert_allclose(targets, [[2 / 3, 0, 0], [0, 2, 0], [0, 0, 1], [0, 0, 0]], rtol=1e-6)
    assert targets.dtype == np.float32


def test_without_mixing_and_weights_targets_are_labels() -> None:
    config = schema.Data(name="folder", batch_size=4)
    assert Targets(SINGLE_LABEL, np.array([4, 2, 0, 0]), config, None).batch(np.array([1, 0])).tolist() == [
        2,
        4,
        -1,
        -1,
    ]
    assert Targets(SINGLE_LABEL, np.array([4, 2]), config, None).batch(np.array([1, 0])).tolist() == [2, 4]

"""RandAugment and colour jitter against torchvision's, on the same Pillow images."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_image
from torchvision.transforms import ColorJitter, RandAugment
from torchvision.transforms import functional as F
from torchvision.transforms.autoaugment import InterpolationMode, _apply_op

from mlx_peft.config import schema
from mlx_peft.data.augment import generator
from mlx_peft.data.colour import OPERATIONS, SIGNED, change, color_jitter, rand_augment

SIZES = [(32, 32), (90, 61)]


def picture(width: int, height: int) -> Image.Image:
    return Image.fromarray(load_sample_image("flower.jpg")).resize((width, height))


def test_the_operations_are_torchvisions_and_in_its_order() -> None:
    theirs = RandAugment()._augmentation_space(31, (32, 32))
    assert list(OPERATIONS) == list(theirs)
    assert {name for name, (_, signed) in theirs.items() if signed} == set(SIGNED)


@pytest.mark.one_in(2)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_gives_torchvisions_pixels_at_every_magnitude(name: str, size: tuple[int, int]) -> None:
    image = picture(*size)
    magnitudes, signed = RandAugment()._augmentation_space(31, (size[1], size[0]))[name]
    for magnitude, sign in itertools.product(range(31), (1, -1) if signed else (1,)):
        theirs = float(magnitudes[magnitude]) if magnitudes.ndim else 0.0
        ours = change(name, magnitude, size)
        assert ours == pytest.approx(theirs, rel=1e-6)  # torchvision's come in float32
        expected = _apply_op(image, name, sign * theirs, InterpolationMode.NEAREST, None)
        assert np.array_equal(np.asarray(OPERATIONS[name](image, sign * theirs)), np.asarray(expected)), magnitude
        # With the exact magnitude a level is rounded to the other side, or a sampling point falls there, now and then.
        error = np.abs(np.asarray(OPERATIONS[name](image, sign * ours)).astype(int) - np.asarray(expected))
        assert error.max() <= 1 or (error > 0).mean() < 0.02, magnitude


def test_as_many_operations_as_asked_for_are_drawn_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[str, float]] = []
    for name in OPERATIONS:
        monkeypatch.setitem(
            OPERATIONS,
            name,
            lambda image, amount, name=name: drawn.append((name, amount)) or image,  # type: ignore
        )
    image, config = picture(32, 32), schema.RandAugment(ops=3, magnitude=12)
    for number in range(1000):
        rand_augment(generator(0, 0, number), image, config)
    assert len(drawn) == 3000
    for name in OPERATIONS:
        amounts = {amount for other, amount in drawn if other == name}
        assert 140 < sum(other == name for other, _ in drawn) < 290  # 3000 / 14 = 214, and five standard deviations
        expected = change(name, 12, image.size)
        assert amounts == ({expected, -expected} if name in SIGNED else {expected})


def test_an_image_is_changed_by_its_own_numbers_alone() -> None:
    image = picture(40, 30)
    for change_it, config in ((rand_augment, schema.RandAugment()), (color_jitter, schema.ColorJitter(hue=0.2))):
        first, again, other = (
            np.asarray(change_it(generator(0, 0, n), image, config))
            for n in (1, 1, 2)  # type: ignore[operator]
        )
        assert np.array_equal(first, again)
        assert not np.array_equal(first, other)


@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        ("brightness", F.adjust_brightness),
        ("contrast", F.adjust_contrast),
        ("saturation", F.adjust_saturation),
        ("hue", F.adjust_hue),
    ],
)
def test_one_kind_of_jitter_is_torchvisions_adjustment_by_the_factor_drawn(name: str, theirs) -> None:
    image = picture(50, 40)
    config = schema.ColorJitter(**({"brightness": 0, "contrast": 0, "saturation": 0} | {name: 0.4}))
    factors = []
    for number in range(200):
        rng = generator(0, 0, number)
        found = color_jitter(generator(0, 0, number), image, config)
        rng.permutation(4)
        amount = rng.uniform(-0.4, 0.4)
        factors.append(amount)
        expected = theirs(image, amount if name == "hue" else 1 + amount)
        assert np.array_equal(np.asarray(found), np.asarray(expected))
    assert -0.4 <= min(factors) < -0.35 < 0.35 < max(factors) <= 0.4


def test_jitter_of_all_kinds_moves_pixels_as_far_as_torchvisions() -> None:
    image = picture(32, 32)
    torch.manual_seed(0)
    jitter = ColorJitter(0.4, 0.4, 0.4, 0.1)
    theirs = np.stack([np.asarray(jitter(image), float) for _ in range(1500)])
    config = schema.ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)
    ours = np.stack([np.asarray(color_jitter(generator(0, 0, n), image, config), float) for n in range(1500)])
    np.testing.assert_allclose(ours.mean(), theirs.mean(), rtol=0.02)
    np.testing.assert_allclose(ours.std(0).mean(), theirs.std(0).mean(), rtol=0.05)


def test_factors_never_turn_a_colour_round() -> None:
    image, config = picture(16, 16), schema.ColorJitter(brightness=3, contrast=0, saturation=0)
    means = [np.asarray(color_jitter(generator(0, 0, n), image, config)).mean() for n in range(200)]
    assert min(means) < np.asarray(image).mean() < max(means)  # a factor below 0 would be an error of Pillow's or black

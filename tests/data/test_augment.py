"""Augmentation: pure in (seed, epoch, index), and distributed as torchvision's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare, kstest, pearsonr
from timm.data.random_erasing import RandomErasing
from torchvision.transforms import RandomResizedCrop

from mlx_peft.config import schema
from mlx_peft.data.augment import Draws, erase, generator, padded_crop, random_resized_box, shuffle
from mlx_peft.vit.architecture import Preprocessing

DRAWS = 4000
STANDARD_ERRORS = 5
"""Two samples' means lie further apart than this once in a million times."""
SIGNIFICANT = 1e-6
"""A fair sample has a smaller p once in a million times."""


def test_an_epoch_is_a_permutation_that_depends_on_seed_and_epoch() -> None:
    orders = [shuffle(1000, seed, epoch) for seed in (0, 1) for epoch in (0, 1)]
    assert all(np.array_equal(np.sort(order), np.arange(1000)) for order in orders)
    assert len({order.tobytes() for order in orders}) == 4
    assert np.array_equal(orders[0], shuffle(1000, 0, 0))


@pytest.mark.parametrize("source", [Draws, generator])
def test_each_image_has_random_numbers_of_its_own(source: type[Draws]) -> None:
    drawn = {source(*key).random() for key in ((0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0), (0, 0, 0, 1))}
    assert len(drawn) == 5
    assert source(3, 4, 5).random() == source(3, 4, 5).random()


def test_numbers_of_the_generator_are_numpys() -> None:
    assert generator(3, 4, 5, 0).random() == np.random.default_rng([3, 4, 5]).random()


def test_draws_are_uniform_within_an_image_and_across_images_and_do_not_come_again() -> None:
    draws = Draws(0, 0, 0)
    within = [draws.random() for _ in range(DRAWS)]
    across = [Draws(0, 0, index).random() for index in range(DRAWS)]
    assert len({*within, *across}) == 2 * DRAWS - 1  # they share the first
    for numbers in (within, across):
        assert kstest(numbers, "uniform").pvalue > SIGNIFICANT
    assert abs(pearsonr(within[1:], within[:-1])[0]) < STANDARD_ERRORS / np.sqrt(DRAWS)
    counts = np.bincount([Draws(0, 0, index).integers(3, 10) for index in range(DRAWS)], minlength=10)
    assert not counts[:3].any()
    assert chisquare(counts[3:]).pvalue > SIGNIFICANT


@settings(max_examples=200)
@given(
    size=st.tuples(st.integers(1, 400), st.integers(1, 400)),
    seed=st.integers(0, 2**31 - 1),
    low=st.floats(1e-4, 1.0),
)
def test_a_box_lies_within_the_image(size: tuple[int, int], seed: int, low: float) -> None:
    top, left, height, width = random_resized_box(Draws(seed, 0, 0), size, (low, 1.0), (3 / 4, 4 / 3))
    assert 0 <= top <= top + height <= size[0]
    assert 0 <= left <= left + width <= size[1]
    assert height > 0
    assert width > 0


@pytest.mark.parametrize("size", [(200, 200), (100, 220)])
def test_boxes_are_distributed_as_torchvisions(size: tuple[int, int]) -> None:
    scale, ratio = (0.08, 1.0), (3 / 4, 4 / 3)
    torch.manual_seed(0)
    image = torch.zeros(3, *size)
    theirs = np.array([RandomResizedCrop.get_params(image, scale, ratio) for _ in range(DRAWS)], float)
    ours = np.array([random_resized_box(Draws(0, 0, n), size, scale, ratio) for n in range(DRAWS)], float)
    for power in (1, 2):
        a, b = ours**power, theirs**power
        distance = np.abs(a.mean(0) - b.mean(0)) / np.sqrt((a.var(0) + b.var(0)) / DRAWS)
        assert (distance < STANDARD_ERRORS).all()


@pytest.mark.parametrize(
    ("size", "box"), [((10, 400), (0, 193, 10, 13)), ((400, 10), (193, 0, 13, 10)), ((10, 10), (0, 0, 10, 10))]
)
def test_where_no_box_fits_the_centre_is_taken(size: tuple[int, int], box: tuple[int, int, int, int]) -> None:
    assert random_resized_box(Draws(0, 0, 0), size, (2.0, 3.0), (3 / 4, 4 / 3)) == box


@settings(max_examples=60)
@given(
    size=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    padding=st.integers(0, 15),
    seed=st.integers(0, 1000),
)
def test_a_padded_crop_is_a_window_of_numpys_reflection(size: tuple[int, int], padding: int, seed: int) -> None:
    image = np.arange(size[0] * size[1] * 3, dtype=np.uint8).reshape(*size, 3)
    window = padded_crop(Draws(seed, 0, 0), image, padding)
    padded = np.pad(image, ((padding, padding), (padding, padding), (0, 0)), "reflect")
    draws = Draws(seed, 0, 0)
    down, right = draws.integers(0, 2 * padding + 1), draws.integers(0, 2 * padding + 1)
    assert np.array_equal(window, padded[down : down + size[0], right : right + size[1]])


def test_padded_crops_reach_every_offset() -> None:
    image = np.arange(25, dtype=np.uint8).reshape(5, 5, 1).repeat(3, 2)
    windows = {padded_crop(Draws(0, 0, n), image, 2).tobytes() for n in range(500)}
    assert len(windows) == 25


STATISTICS = Preprocessing(mean=(0.5, 0.25, 0.75), std=(0.1, 0.2, 0.1))


def test_erased_boxes_are_distributed_as_timms() -> None:
    torch.manual_seed(0)
    theirs = RandomErasing(probability=0.7, device="cpu")
    config = schema.Erasing(probability=0.7)
    image = np.full((40, 30, 3), 9, np.uint8)
    found = []
    for number in range(DRAWS):
        ours = (erase(generator(0, 0, number), image, config, STATISTICS) != image).all(2)
        erased = (theirs(torch.ones(3, 40, 30)) == 0).all(0).numpy()
        found.append([(mask.sum(), mask.any(1).sum(), mask.any(0).sum()) for mask in (ours, erased)])
    a, b = np.moveaxis(np.array(found, float), 1, 0)
    for power in (1, 2):
        distance = np.abs((a**power).mean(0) - (b**power).mean(0))
        assert (distance < STANDARD_ERRORS * np.sqrt(((a**power).var(0) + (b**power).var(0)) / DRAWS)).all()


def test_a_box_is_filled_with_the_mean_colour_or_noise_around_it_and_the_rest_left_alone() -> None:
    image = np.full((64, 64, 3), 200, np.uint8)
    image.flags.writeable = False
    for number in range(50):
        plain = erase(generator(0, 0, number), image, schema.Erasing(probability=1), STATISTICS)
        box = (plain != image).all(2)
        assert box.any()
        assert box[np.ix_(box.any(1), box.any(0))].all()
        assert (plain[box] == [128, 64, 191]).all()
        assert (plain[~box] == 200).all()
    noisy = erase(generator(0, 0, 0), image, schema.Erasing(probability=1, fill="noise"), STATISTICS)
    drawn = noisy[(noisy != 200).any(2)] / 255
    error = STANDARD_ERRORS / np.sqrt(len(drawn))
    assert np.abs((drawn.mean(0) - STATISTICS.mean) / STATISTICS.std).max() < error
    assert np.abs(drawn.std(0) / STATISTICS.std - 1).max() < error


def test_an_image_that_is_not_erased_is_the_same_array() -> None:
    image = np.zeros((8, 8, 3), np.uint8)
    kept = [erase(generator(0, 0, n), image, schema.Erasing(), STATISTICS) is image for n in range(400)]
    assert 250 < sum(kept) < 350  # three quarters of 400, five standard deviations

"""The resize of training crops: the same pixels by both of its ways, and how far they are from Pillow's."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_sample_image

from mlx_peft.data import resize
from mlx_peft.data.recipe import FILTERS
from mlx_peft.data.resize import crop_and_resize

cykooz_resizer = pytest.importorskip("cykooz_resizer", reason="it has no wheel for this platform")

LEVELS = 2
"""15 bits in place of Pillow's 22, and the passes in the other order: a half may be rounded to the other side in each
of the two."""
FAR, SELDOM = 16, 2e-3
"""Bicubic overshoots at sharp edges, and what is cut off between the passes differs with their order: values past
LEVELS are at most this far off, and at most this share of a photograph of 16 pixels or more."""


@pytest.fixture(params=["cykooz.resizer", "sparse products"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    if request.param != "cykooz.resizer":
        monkeypatch.setattr(resize, "_cykooz", lambda: None)
    else:
        assert resize._cykooz() is cykooz_resizer
    yield


def photograph(height: int, width: int) -> np.ndarray:
    return np.asarray(Image.fromarray(load_sample_image("china.jpg")).resize((width, height)))


sides = st.one_of(st.integers(1, 20), st.integers(1, 400))


@settings(max_examples=300)
@given(
    size=st.tuples(sides, sides),
    target=st.sampled_from([1, 7, 32, 96, 224, 256]),
    interpolation=st.sampled_from(list(FILTERS)),
    seed=st.integers(0, 100),
    contrast=st.booleans(),
)
def test_both_ways_give_the_same_pixels(
    size: tuple[int, int], target: int, interpolation: str, seed: int, contrast: bool
) -> None:
    noise = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    image = np.where(noise > 127, np.uint8(255), np.uint8(0)) if contrast else noise
    quick = resize._quickly(cykooz_resizer, image, target, interpolation)
    assert np.array_equal(quick, resize._by_products(image, target, interpolation))


@settings(max_examples=100)
@given(
    size=st.tuples(st.integers(16, 400), st.integers(16, 400)),
    target=st.sampled_from([32, 96, 224]),
    interpolation=st.sampled_from(list(FILTERS)),
)
def test_a_photograph_is_within_a_level_or_two_of_pillows(
    size: tuple[int, int], target: int, interpolation: str
) -> None:
    image = photograph(*size)
    ours = crop_and_resize(image, (0, 0, *size), target, interpolation)
    theirs = np.asarray(Image.fromarray(image).resize((target, target), FILTERS[interpolation]))
    error = np.abs(ours - theirs.astype(int))
    assert ours.dtype == np.uint8
    assert error.max() <= (FAR if interpolation == "bicubic" else LEVELS)
    assert (error > LEVELS).mean() <= SELDOM


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("interpolation", FILTERS)
def test_a_box_is_what_was_cut_out_beforehand(interpolation: str) -> None:
    image = photograph(90, 110)
    found = crop_and_resize(image, (5, 20, 70, 60), 64, interpolation)
    assert np.array_equal(found, crop_and_resize(image[5:75, 20:80].copy(), (0, 0, 70, 60), 64, interpolation))


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("interpolation", FILTERS)
@pytest.mark.parametrize("size", [(64, 64), (64, 40), (40, 64)])
def test_a_side_that_fits_is_left_as_it_is(size: tuple[int, int], interpolation: str) -> None:
    image = photograph(*size)
    found = crop_and_resize(image, (0, 0, *size), 64, interpolation)
    if size == (64, 64):
        assert np.array_equal(found, image)
    theirs = np.asarray(Image.fromarray(image).resize((64, 64), FILTERS[interpolation]))
    assert np.abs(found - theirs.astype(int)).max() <= 1  # a single pass


@pytest.mark.usefixtures("way")
def test_a_grey_image_that_is_a_view_of_one_channel_is_resized_too() -> None:
    grey = np.random.default_rng(0).integers(0, 256, (20, 20), np.uint8)
    view = np.broadcast_to(grey[..., None], (20, 20, 3))
    found = crop_and_resize(view, (2, 3, 15, 14), 32, "bicubic")
    assert np.array_equal(found, crop_and_resize(view.copy(), (2, 3, 15, 14), 32, "bicubic"))
    assert (found == found[..., :1]).all()


def test_threads_do_not_share_a_result() -> None:
    images = [photograph(50 + number, 80 - number) for number in range(16)]
    boxes = [(0, 0, *image.shape[:2]) for image in images]
    expected = [crop_and_resize(image, box, 48, "bicubic") for image, box in zip(images, boxes, strict=True)]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(20):
            found = list(pool.map(lambda pair: crop_and_resize(*pair, 48, "bicubic"), zip(images, boxes, strict=True)))
            assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))

"""The quick resize of training crops against Pillow's."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_sample_image

from mlx_peft.data.recipe import FILTERS
from mlx_peft.data.resize import BITS, crop_and_resize, turned

LEVELS = 2
"""15 bits after the point in place of Pillow's 22: a half may be rounded to the other side, and so may what comes of it
in the second pass. More than one level is very rare, ..."""
SELDOM = 0.02
"""... at most this share of the values, of which the smallest images here have 147."""


@settings(max_examples=50, deadline=None)
@given(
    size=st.tuples(st.integers(1, 160), st.integers(1, 160)),
    offset=st.tuples(st.integers(0, 20), st.integers(0, 20)),
    target=st.sampled_from([1, 7, 32, 96]),
    interpolation=st.sampled_from(list(FILTERS)),
    seed=st.integers(0, 100),
    smooth=st.booleans(),
)
def test_a_box_differs_from_pillows_by_a_level_and_hardly_ever_by_two(
    size: tuple[int, int], offset: tuple[int, int], target: int, interpolation: str, seed: int, smooth: bool
) -> None:
    height, width = size
    # Else Pillow takes the columns first (from version 13 on), and rounds what lies between the passes otherwise.
    assume(height <= target or height - target <= 2 * (width - target))
    top, left = offset
    if smooth:
        image = np.asarray(Image.fromarray(load_sample_image("china.jpg")).resize((width + 20, height + 20)))
    else:
        image = np.random.default_rng(seed).integers(0, 256, (height + 20, width + 20, 3), np.uint8)
    ours = crop_and_resize(image, (top, left, height, width), target, interpolation)
    window = Image.fromarray(np.ascontiguousarray(image[top : top + height, left : left + width]))
    error = np.abs(ours - np.asarray(window.resize((target, target), FILTERS[interpolation])).astype(int))
    assert ours.dtype == np.uint8
    assert error.max() <= LEVELS
    assert (error > 1).mean() <= SELDOM


@pytest.mark.parametrize("interpolation", FILTERS)
@pytest.mark.parametrize("sizes", [(175, 224), (250, 224), (40, 224), (640, 224)])
def test_sums_are_exact_in_float32_in_any_order(sizes: tuple[int, int], interpolation: str) -> None:
    from mlx_peft.data.resize import _matrix

    matrix = _matrix(*sizes, interpolation, False)
    whole = matrix.data.astype(np.float64) * 2**BITS
    assert np.array_equal(whole, np.rint(whole))
    assert 255 * np.abs(matrix).sum(1).max() * 2**BITS < 2**24


@pytest.mark.parametrize("channels_apart", [False, True])
def test_turning_is_a_transposition(channels_apart: bool) -> None:
    image = np.random.default_rng(0).integers(0, 256, (11, 7, 3), np.uint8)
    some = image[2:9, 1:6, ::-1] if channels_apart else image[2:9, 1:6]
    found = turned(some)
    assert np.array_equal(found, some.transpose(1, 0, 2))
    assert found.flags.c_contiguous


def test_a_grey_image_that_is_a_view_of_one_channel_is_resized_too() -> None:
    grey = np.random.default_rng(0).integers(0, 256, (20, 20), np.uint8)
    view = np.broadcast_to(grey[..., None], (20, 20, 3))
    found = crop_and_resize(view, (2, 3, 15, 14), 32, "bicubic")
    assert np.array_equal(found, crop_and_resize(view.copy(), (2, 3, 15, 14), 32, "bicubic"))
    assert (found == found[..., :1]).all()


@pytest.mark.parametrize("width", [14, 32, 50])
def test_flipping_on_the_way_is_flipping_afterwards(width: int) -> None:
    image = np.random.default_rng(0).integers(0, 256, (60, 60, 3), np.uint8)
    for interpolation in FILTERS:
        plain = crop_and_resize(image, (2, 3, 40, width), 32, interpolation)
        flipped = crop_and_resize(image, (2, 3, 40, width), 32, interpolation, flip=True)
        assert np.array_equal(flipped, plain[:, ::-1])

"""Hashes of pixels and of what is seen, and what they put together."""

from __future__ import annotations

import io
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mlx_peft.data import duplicates
from mlx_peft.data.duplicates import alike, clusters, glance, near_pairs, pixel_hash


def picture(seed: int, side: int = 96) -> Image.Image:
    """Smooth shapes, as photographs have them: eight by eight colours, enlarged."""
    small = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
    return Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC)


def recompressed(image: Image.Image) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=30)
    return Image.open(file)


def seen(image: Image.Image) -> bytes:
    found = glance(np.asarray(image))
    assert found is not None
    return found


EDITS = {
    "recompressed": recompressed,
    "half the size": lambda image: image.resize((image.width // 2, image.height // 2), Image.Resampling.BICUBIC),
    "brighter": lambda image: image.point(lambda level: min(255, int(level * 1.1))),
    "grey": lambda image: image.convert("L").convert("RGB"),
}


@pytest.mark.parametrize("edit", EDITS)
def test_an_edited_image_stays_near(edit: str) -> None:
    for seed in range(50):
        image = picture(seed)
        changed = EDITS[edit](image)
        assert alike([seen(image), seen(changed)]).tolist() == [[0, 1]]
        assert pixel_hash(np.asarray(image)) != pixel_hash(np.asarray(changed))


def test_different_images_are_far() -> None:
    assert alike([seen(picture(seed)) for seed in range(50)]).size == 0


def test_a_silhouette_that_is_filled_differently_is_another_image() -> None:
    """Their hashes are the same, as those of any two pullovers: the small images tell them apart."""
    plain, patterned = Image.new("RGB", (96, 96)), Image.new("RGB", (96, 96))
    for image in (plain, patterned):
        image.paste("white", (24, 16, 72, 90))
    draw = np.array(patterned)
    for top in range(20, 86, 8):
        draw[top : top + 4, 28:68] = 40
    glances = [seen(plain), seen(Image.fromarray(draw))]
    assert (
        int.from_bytes(glances[0][:8], "big") ^ int.from_bytes(glances[1][:8], "big")
    ).bit_count() <= duplicates.NEAR
    assert alike(glances).size == 0


def test_a_flat_image_resembles_nothing() -> None:
    assert glance(np.full((20, 20, 3), 7, np.uint8)) is None
    flat = [np.full((20, 20, 3), level, np.uint8) for level in (7, 7, 9)]
    numbers = clusters([pixel_hash(image) for image in flat], [glance(image) for image in flat])
    assert numbers[0] == numbers[1] != numbers[2]


def test_equal_bytes_of_another_shape_are_another_image() -> None:
    pixels = np.arange(24, dtype=np.uint8)
    assert pixel_hash(pixels.reshape(4, 2, 3)) != pixel_hash(pixels.reshape(2, 4, 3))
    assert pixel_hash(np.broadcast_to(np.uint8(3), (4, 2, 3))) == pixel_hash(np.full((4, 2, 3), 3, np.uint8))


@pytest.mark.parametrize("counting", ["numpy", "table"])
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32), size=st.integers(0, 60), distance=st.integers(0, 9))
def test_near_pairs_are_all_pairs_that_are_near(counting: str, seed: int, size: int, distance: int) -> None:
    """Against every pair compared: few bits are set, so that many pairs are near."""
    rng = np.random.default_rng(seed)
    bits = rng.random((size, 64)) < 0.08
    hashes = np.unique(np.packbits(bits, axis=1).view(">u8").astype(np.uint64).ravel())
    with pytest.MonkeyPatch.context() as patch:
        if counting == "table" and hasattr(np, "bitwise_count"):
            patch.delattr(np, "bitwise_count")
        found = {tuple(pair) for pairs in near_pairs(hashes, distance) for pair in pairs.tolist()}
    pairs = itertools.combinations(range(len(hashes)), 2)
    expected = {(a, b) for a, b in pairs if (int(hashes[a]) ^ int(hashes[b])).bit_count() <= distance}
    assert {tuple(sorted(pair)) for pair in found} == expected


def test_pairs_are_compared_in_parts_without_losing_any(monkeypatch: pytest.MonkeyPatch) -> None:
    hashes = np.arange(64, dtype=np.uint64)
    whole = {tuple(pair) for pairs in near_pairs(hashes, 1) for pair in pairs.tolist()}
    monkeypatch.setattr(duplicates, "_PAIRS", 10)
    assert {tuple(pair) for pairs in near_pairs(hashes, 1) for pair in pairs.tolist()} == whole
    assert len(whole) == 6 * 32


def test_clusters_join_through_a_third_image() -> None:
    """Darker by a fifth, and by a fifth again; the same file twice; another image."""
    first = picture(1)
    second = first.point(lambda level: int(level * 0.8))
    third = second.point(lambda level: int(level * 0.8))
    images = [np.asarray(image) for image in (first, second, third, picture(2), picture(2), picture(3))]
    numbers = clusters([pixel_hash(image) for image in images], [glance(image) for image in images]).tolist()
    assert numbers[0] == numbers[1] == numbers[2]
    assert numbers[3] == numbers[4]
    assert len(set(numbers)) == 3


def test_nothing_has_no_clusters_and_the_unreadable_are_alone() -> None:
    assert clusters([], []).size == 0
    assert len(set(clusters([None, None], [None, None]).tolist())) == 2

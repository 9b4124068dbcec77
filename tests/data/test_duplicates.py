"""Hashes of pixels and of what is seen, and what they put together."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.sparse.csgraph import connected_components

from mlx_peft.data import duplicates
from mlx_peft.data.duplicates import CORRELATED, NEAR, Glances, clusters, correlated
from mlx_peft.data.seen import RECORD, glance, pixel_hash
from mlx_peft.data.seen import seen as record


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


def glances(found: list[bytes]) -> Glances:
    """Of images with these glances, and with different pixels."""
    records = np.zeros(len(found), RECORD)
    records["glanced"] = True
    table = records.view(np.uint8).reshape(len(found), RECORD.itemsize)
    table[:, 17:] = np.frombuffer(b"".join(found), np.uint8).reshape(len(found), 264)
    return Glances(records, np.arange(len(found)))


def clustered(images: list[np.ndarray]) -> list[int]:
    return clusters(np.array([record(image) for image in images], RECORD)).tolist()


def resemble(one: bytes, other: bytes) -> bool:
    found = glances([one, other])
    near = found.firsts().tolist() == [0, 0]
    assert near == (len(set(found.clusters().tolist())) == 1)
    return near


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
        assert resemble(seen(image), seen(changed))
        assert pixel_hash(np.asarray(image)) != pixel_hash(np.asarray(changed))


def test_different_images_are_far() -> None:
    different = glances([seen(picture(seed)) for seed in range(50)])
    assert different.firsts().tolist() == list(range(50))
    assert len(set(different.clusters().tolist())) == 50


def test_a_silhouette_that_is_filled_differently_is_another_image() -> None:
    """Their hashes are the same, as those of any two pullovers: the small images tell them apart."""
    plain, patterned = Image.new("RGB", (96, 96)), Image.new("RGB", (96, 96))
    for image in (plain, patterned):
        image.paste("white", (24, 16, 72, 90))
    draw = np.array(patterned)
    for top in range(20, 86, 8):
        draw[top : top + 4, 28:68] = 40
    both = [seen(plain), seen(Image.fromarray(draw))]
    assert (int.from_bytes(both[0][:8], "big") ^ int.from_bytes(both[1][:8], "big")).bit_count() <= NEAR
    assert not resemble(*both)


def test_a_flat_image_resembles_nothing() -> None:
    assert glance(np.full((20, 20, 3), 7, np.uint8)) is None
    flat = [np.full((20, 20, 3), level, np.uint8) for level in (7, 7, 9)]
    numbers = clustered(flat)
    assert numbers[0] == numbers[1] != numbers[2]


def test_equal_bytes_of_another_shape_are_another_image() -> None:
    pixels = np.arange(24, dtype=np.uint8)
    assert pixel_hash(pixels.reshape(4, 2, 3)) != pixel_hash(pixels.reshape(2, 4, 3))
    assert pixel_hash(np.broadcast_to(np.uint8(3), (4, 2, 3))) == pixel_hash(np.full((4, 2, 3), 3, np.uint8))


def random_glances(seed: int, size: int) -> list[bytes]:
    """Few bits of the hashes are set, and the small images vary three: many are near, many just not."""
    rng = np.random.default_rng(seed)
    hashes = np.packbits(rng.random((size, 64)) < rng.choice([0.02, 0.05, 0.08]), axis=1)
    levels = rng.integers(0, 256, (3, 256))[rng.integers(0, 3, size)] + rng.normal(0, 11, (size, 256))
    small = np.clip(levels, 0, 255).astype(np.uint8)
    return list(dict.fromkeys(a.tobytes() + b.tobytes() for a, b in zip(hashes, small, strict=True)))


def near_by_definition(one: bytes, other: bytes) -> bool:
    apart = int.from_bytes(one[:8], "big") ^ int.from_bytes(other[:8], "big")
    small = [np.frombuffer(seen[8:], np.uint8).astype(np.float64) for seen in (one, other)]
    return apart.bit_count() <= NEAR and float(np.corrcoef(*small)[0, 1]) >= CORRELATED


@pytest.mark.one_in(2)
@pytest.mark.parametrize(
    ("rows", "pairs", "few", "chance", "block"),
    [
        (64, 2**20, 1, 16, 2**15),
        (2, 2**20, 1, 16, 2**15),
        (64, 10, 1, 16, 2**15),
        (64, 10, 64, 16, 3),
        (2, 10, 2, 1e-3, 7),
    ],
    ids=["whole", "blocks", "few pairs", "pair by pair", "two bands a key"],
)
@pytest.mark.parametrize("counting", ["numpy", "table"])
@settings(max_examples=8)
@given(seed=st.integers(0, 2**32), size=st.integers(1, 36))
def test_clusters_and_first_partners_are_those_of_every_pair_compared(
    counting: str, rows: int, pairs: int, few: int, chance: float, block: int, seed: int, size: int
) -> None:
    different = random_glances(seed, size)
    near = np.array([[a == b or near_by_definition(a, b) for a in different] for b in different], bool)
    near = near.reshape(len(different), len(different))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"_ROWS": rows, "_PAIRS": pairs, "_FEW": few, "_CHANCE": chance}.items():
            patch.setattr(duplicates, name, value)
        patch.setattr(duplicates, "_HASHES", block)
        patch.setattr(duplicates, "_IMAGES", block)
        if counting == "table" and hasattr(np, "bitwise_count"):
            patch.delattr(np, "bitwise_count")
        found = glances(different)
        number, first = found.clusters(), found.firsts()
    assert first.tolist() == near.argmax(1).tolist()
    _, expected = connected_components(near, directed=False)
    assert len(set(zip(number.tolist(), expected.tolist(), strict=True))) == len(set(number)) == len(set(expected))


@settings(max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2), st.booleans()), max_size=24))
def test_images_with_equal_pixels_or_an_equal_view_belong_together(images: list[tuple[int, int, bool]]) -> None:
    """Of any pixels and views: equal pixels, equal views that are there, and nothing else, where no two views are near.
    Pixels that are all zeros are of images that cannot be read, which are alone but for their views."""
    records = np.zeros(len(images), RECORD)
    views = [picture(seed) for seed in range(3)]
    for row, (pixels, view, glanced) in enumerate(images):
        records[row] = record(np.asarray(views[view]))
        records[row]["pixels"] = bytes([pixels] * 16)
        records[row]["glanced"] = glanced
    number = clusters(records)
    joined = np.zeros((len(images), len(images)), bool)
    for a, (pixels, view, glanced) in enumerate(images):
        for b, other in enumerate(images):
            same_view = view == other[1] and glanced and other[2]
            joined[a, b] = a == b or same_view or (pixels == other[0] != 0)
    _, expected = connected_components(joined, directed=False)
    assert len(set(zip(number.tolist(), expected.tolist(), strict=True))) == len(set(number)) == len(set(expected))


def test_the_correlation_is_exact_whatever_the_levels() -> None:
    """The largest sums that there can be: 256 products of 255 squared are still below 2^24."""
    levels = np.full((2, 256), 255, np.uint8)
    levels[0, 0], levels[1, 0] = 254, 254
    assert correlated(levels, levels).all()
    assert not correlated(levels, np.full((1, 256), 255, np.uint8)).any(), "a flat one correlates with none"
    assert not correlated(levels[:1], levels[1:, ::-1]).any()
    assert 256 * 255**2 < 2**24


@pytest.mark.parametrize("what", ["clusters", "firsts"])
def test_frames_that_are_all_alike_are_not_all_compared_with_all(monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """Twice as many cost twice as much, a fixed number of comparisons each: not a number that grows with them."""
    compared = []
    whole = Glances._alike

    def counted(self: Glances, rows: np.ndarray, columns: np.ndarray, key: int) -> np.ndarray:
        compared.append(len(rows) * len(columns))
        return whole(self, rows, columns, key)

    monkeypatch.setattr(Glances, "_alike", counted)
    rng, frame = np.random.default_rng(0), seen(picture(0))
    levels = np.frombuffer(frame[8:], np.uint8)
    alike = glances([frame[:8] + bytes(np.clip(levels + rng.normal(0, 2, 256), 0, 255).astype(np.uint8))
                     for _ in range(2000)])  # fmt: skip
    assert len(set(getattr(alike, what)().tolist())) == 1
    assert sum(compared) <= 2 * duplicates._ROWS * len(alike)


@pytest.mark.parametrize("what", ["clusters", "firsts"])
def test_an_image_is_compared_with_few_that_resemble_it_by_chance(monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """Of random hashes 7 in 512 share a band: their number would grow with that of the images."""
    compared = []
    counted = duplicates._ones
    monkeypatch.setattr(duplicates, "_ones", lambda words: compared.append(words.size) or counted(words))
    monkeypatch.setattr(duplicates, "_CHANCE", 1)
    for count in (2_000, 8_000):
        compared.clear()
        different = glances([*np.random.default_rng(0).integers(0, 256, (count, 264), np.uint8)])
        assert len(set(getattr(different, what)().tolist())) == count
        assert sum(compared) <= len(different._keys) * count


def test_a_pair_is_compared_once_however_many_keys_it_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two hashes that differ in a bit share 21 of 28 keys; their small images were correlated 21 times."""
    compared = []
    counted = duplicates.resemble
    monkeypatch.setattr(duplicates, "resemble", lambda one, other: compared.append(len(one)) or counted(one, other))
    monkeypatch.setattr(duplicates, "_CHANCE", 1)
    rng = np.random.default_rng(0)
    table = rng.integers(0, 256, (1_000, 264), np.uint8)
    table[1::2] = table[::2]
    table[1::2, 0] ^= 1
    found = glances([*table])
    assert len(found._keys) == 28
    assert len(set(found.clusters().tolist())) == 500
    assert sum(compared) == 500


def test_clusters_join_through_a_third_image() -> None:
    """Darker by a fifth, and by a fifth again; the same file twice; another image."""
    first = picture(1)
    second = first.point(lambda level: int(level * 0.8))
    third = second.point(lambda level: int(level * 0.8))
    images = [np.asarray(image) for image in (first, second, third, picture(2), picture(2), picture(3))]
    numbers = clustered(images)
    assert numbers[0] == numbers[1] == numbers[2]
    assert numbers[3] == numbers[4]
    assert len(set(numbers)) == 3


def test_nothing_has_no_clusters_and_the_unreadable_are_alone() -> None:
    assert clusters(np.zeros(0, RECORD)).size == 0
    assert glances([]).firsts().size == 0
    assert len(set(clusters(np.zeros(2, RECORD)).tolist())) == 2

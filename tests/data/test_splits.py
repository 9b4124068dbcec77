"""Holding out: stratified, seeded, and the same whatever the order in which images are listed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_peft.config import schema
from mlx_peft.core.errors import UserError
from mlx_peft.data import ArrayImages, Dataset, Split
from mlx_peft.data.splits import hold_out

CLASSES = ("a", "b", "c")


def made(counts: tuple[int, ...], source: str = "made") -> Split:
    labels = np.repeat(np.arange(len(counts)), counts)
    return Split("train", ArrayImages.whole(np.zeros((len(labels), 2, 2), np.uint8), source), labels)


def held(counts: tuple[int, ...], **config: float) -> Dataset:
    return hold_out("made", CLASSES, made(counts), schema.Split(**config))


def counts_of(split: Split | None) -> list[int]:
    assert split is not None
    return np.bincount(split.labels, minlength=3).tolist()


def test_each_class_gives_its_share() -> None:
    dataset = held((100, 50, 10), val=0.1, test=0.2)
    assert counts_of(dataset.test) == [20, 10, 2]
    assert counts_of(dataset.val) == [10, 5, 1]
    assert counts_of(dataset.train) == [70, 35, 7]


def test_the_parts_are_disjoint_and_together_the_whole() -> None:
    dataset = held((31, 17, 5), val=0.2, test=0.2)
    parts = [set(split.images.identifiers) for split in (dataset.train, dataset.val, dataset.test) if split]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 53


@given(st.sets(st.integers(0, 52)))
def test_rows_that_are_broken_are_missing_and_no_other_changes_its_split(broken: set[int]) -> None:
    """Else an image that was trained on would come into the test split of a run that goes on without a broken one."""
    split, shares = made((31, 17, 5)), schema.Split(val=0.2, test=0.2)
    whole = hold_out("made", CLASSES, split, shares)
    lost = {split.images.identifiers[row] for row in broken}
    left = {name: [one for one in part.images.identifiers if one not in lost] for name, part in whole.splits.items()}
    if not all(left.values()):
        with pytest.raises(UserError, match=r"no image of (train|val|test) can be read"):
            hold_out("made", CLASSES, split, shares, broken=broken)
        return
    found = hold_out("made", CLASSES, split, shares, broken=broken)
    assert {name: list(part.images.identifiers) for name, part in found.splits.items()} == left


def test_a_share_of_zero_leaves_no_split() -> None:
    dataset = held((10, 10, 10), val=0, test=0)
    assert dataset.val is None
    assert dataset.test is None
    assert dataset.train.size == 30


def test_a_small_class_gives_one_image_but_never_its_last() -> None:
    dataset = held((100, 2, 1), val=0.1, test=0)
    assert counts_of(dataset.val) == [10, 1, 0]
    assert counts_of(dataset.train) == [90, 1, 1]


def test_a_share_that_no_class_can_spare_is_refused() -> None:
    with pytest.raises(UserError, match=r"data\.split\.val is 0\.5.*no class of made has an image to spare"):
        held((1, 1, 1), val=0.5)


def test_the_seed_moves_images_and_the_hash() -> None:
    first, again, other = (held((40, 40, 40), val=0.25, seed=seed) for seed in (0, 0, 1))
    assert first.train.sha256 == again.train.sha256
    assert first.train.sha256 != other.train.sha256
    assert first.val and other.val and first.val.images.identifiers != other.val.images.identifiers


def test_the_validation_share_does_not_move_test_images() -> None:
    small, large = held((40, 40, 40), val=0.1, test=0.2), held((40, 40, 40), val=0.4, test=0.2)
    assert small.test and large.test and small.test.sha256 == large.test.sha256


def test_an_image_more_moves_few_others() -> None:
    before, after = held((100, 100, 100), val=0.2), held((100, 100, 101), val=0.2)
    assert before.val and after.val
    assert len(set(before.val.images.identifiers) ^ set(after.val.images.identifiers)) <= 2


def test_splits_of_its_own_are_left_alone() -> None:
    own = made((3, 3, 3), "own")
    dataset = hold_out("made", CLASSES, made((9, 9, 9)), schema.Split(val=0.5, test=0.3), val=own, test=own)
    assert dataset.val is own
    assert dataset.test is own
    assert dataset.train.size == 27


def test_the_hash_sees_names_labels_and_order() -> None:
    split = made((2, 1, 1))
    reversed_rows = split.take(np.arange(4)[::-1], "train")
    relabelled = Split("train", split.images, split.labels[::-1])
    renamed = made((2, 1, 1), "other")
    assert len({part.sha256 for part in (split, reversed_rows, relabelled, renamed)}) == 4


def grouped(counts: tuple[int, ...], size: int, **config: float) -> Dataset:
    """Groups of `size` consecutive images, which may reach into the next class."""
    split = made(counts)
    return hold_out("made", CLASSES, replace(split, groups=np.arange(split.size) // size), schema.Split(**config))


@settings(max_examples=60)
@given(
    counts=st.tuples(*[st.integers(1, 40)] * 3),
    size=st.integers(1, 9),
    val=st.floats(0, 0.4),
    test=st.floats(0, 0.4),
    seed=st.integers(0, 100),
)
def test_a_group_is_never_parted_and_no_image_is_lost(
    counts: tuple[int, ...], size: int, val: float, test: float, seed: int
) -> None:
    try:
        dataset = grouped(counts, size, val=val, test=test, seed=seed)
    except UserError as error:
        assert "has a group to spare" in str(error)
        return
    groups = [set(split.groups.tolist()) for split in dataset.splits.values() if split.groups is not None]
    assert sum(map(len, groups)) == len(set.union(*groups)) == -(-sum(counts) // size)
    assert sum(split.size for split in dataset.splits.values()) == sum(counts)


def test_groups_of_one_image_are_split_as_images_are() -> None:
    alone, plain = grouped((40, 30, 20), 1, val=0.2, test=0.2), held((40, 30, 20), val=0.2, test=0.2)
    assert {name: split.sha256 for name, split in alone.splits.items()} == {
        name: split.sha256 for name, split in plain.splits.items()
    }


def test_groups_give_each_class_its_share_as_nearly_as_they_allow() -> None:
    dataset = grouped((100, 50, 20), 5, val=0.1, test=0.2)
    assert counts_of(dataset.test) == [20, 10, 5], "of the last, 4 are due: a group of 5 is the least"
    assert counts_of(dataset.val) == [10, 5, 5]


def test_one_group_cannot_be_split() -> None:
    with pytest.raises(UserError, match=r"no class of made has a group to spare"):
        grouped((9, 9, 9), 9, val=0.2)


def test_the_seed_moves_groups() -> None:
    assert (
        grouped((60, 60, 60), 6, val=0.3, seed=0).train.sha256 != grouped((60, 60, 60), 6, val=0.3, seed=1).train.sha256
    )

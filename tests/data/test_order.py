"""Which images an epoch has: repeated, or sampled by class; and what a class weighs."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.utils.class_weight import compute_class_weight
from timm.data.distributed_sampler import RepeatAugSampler

from mlx_peft.config import schema
from mlx_peft.data.augment import shuffle
from mlx_peft.data.order import epoch_order, occurrences, rows_of_each
from mlx_peft.tasks.weights import class_weights

LABELS = np.repeat([0, 1, 3], [80, 15, 5])  # class 2 has no images


def data(**options: object) -> schema.Data:
    return schema.Data(name="folder", **options)


def test_by_default_every_image_comes_once_as_it_always_did() -> None:
    assert np.array_equal(epoch_order(LABELS, data(), 3, 4), shuffle(100, 3, 4))


def test_repeats_show_fewer_images_more_often_one_after_another() -> None:
    order = epoch_order(LABELS, data(augment={"flip": True, "repeats": 3}), 3, 4)
    assert len(order) == 100
    assert np.array_equal(order[:99].reshape(33, 3), np.repeat(shuffle(100, 3, 4)[:33, None], 3, 1))
    assert np.array_equal(occurrences(order), np.tile([0, 1, 2], 34)[:100])


def test_repeats_are_timms_up_to_its_last_whole_256_images() -> None:
    theirs = list(RepeatAugSampler(range(600), num_replicas=1, rank=0, shuffle=False))
    order = epoch_order(np.zeros(600, int), data(augment={"flip": True, "repeats": 3}), 3, 4)
    assert (len(theirs), len(order)) == (512, 600)
    assert np.array_equal(order[:512], shuffle(600, 3, 4)[theirs])


@pytest.mark.parametrize(("sampling", "power"), [("class", 0), ("square_root", 0.5)])
def test_classes_have_their_shares_and_images_of_a_class_their_turns(sampling: str, power: float) -> None:
    counts = np.bincount(LABELS)
    seen = np.zeros(100, int)
    for epoch in range(40):
        order = epoch_order(LABELS, data(sampling=sampling), 0, epoch)
        assert len(order) == 100
        drawn = np.bincount(LABELS[order], minlength=4)
        shares = np.where(counts, counts.astype(float) ** power, 0)
        assert np.abs(drawn - 100 * shares / shares.sum()).max() < 1
        for label in (0, 1, 3):
            times = np.bincount(order, minlength=100)[label == LABELS]
            assert times.max() - times.min() <= 1
        seen += np.bincount(order, minlength=100)
    assert seen.min() > 0


def test_sampling_depends_on_seed_and_epoch_alone() -> None:
    config = data(sampling="class")
    orders = [epoch_order(LABELS, config, seed, epoch) for seed in (0, 1) for epoch in (0, 1)]
    assert len({order.tobytes() for order in orders}) == 4
    assert np.array_equal(orders[3], epoch_order(LABELS, config, 1, 1))


@settings(max_examples=60)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.sampled_from(["class", "square_root"]))
def test_a_sampled_epoch_is_as_long_as_any(labels: list[int], sampling: str) -> None:
    found = np.array(labels)
    order = epoch_order(found, data(sampling=sampling), 1, 2)
    assert order.shape == found.shape
    assert set(found[order]) <= set(labels)


@settings(max_examples=60)
@given(st.lists(st.integers(0, 5), max_size=30))
def test_occurrences_count_what_came_before(order: list[int]) -> None:
    assert occurrences(np.array(order, int)).tolist() == [order[:n].count(value) for n, value in enumerate(order)]


def test_balanced_weights_are_scikit_learns_and_an_absent_class_has_none() -> None:
    weights = class_weights(LABELS, 4, "balanced")
    expected = compute_class_weight("balanced", classes=np.array([0, 1, 3]), y=LABELS)
    np.testing.assert_allclose(weights[[0, 1, 3]], expected, rtol=1e-6)
    assert weights[2] == 0
    assert class_weights(LABELS, 4, "none").tolist() == [1, 1, 1, 1]
    root = class_weights(LABELS, 4, "square_root")
    np.testing.assert_allclose(root[0] / root[3], (5 / 80) ** 0.5, rtol=1e-6)
    np.testing.assert_allclose(root[LABELS].mean(), 1, rtol=1e-6)


def test_repeats_make_no_more_than_the_epoch_has() -> None:
    labels = np.zeros(20_000, np.int64)
    tracemalloc.start()
    order = epoch_order(labels, data(augment={"flip": True, "repeats": 1000}), 3, 4)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert np.array_equal(order, np.repeat(shuffle(20_000, 3, 4)[:20], 1000))
    assert peak < 10 * labels.nbytes  # every copy of every image is a thousand times as much


@given(labels=st.lists(st.integers(0, 9), min_size=1, max_size=60))
def test_the_rows_of_each_class_are_those_that_have_it(labels: list[int]) -> None:
    found = rows_of_each(np.array(labels))
    assert [rows.tolist() for rows in found] == [
        [row for row, label in enumerate(labels) if label == one] for one in range(max(labels) + 1)
    ]

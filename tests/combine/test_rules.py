"""The arithmetic of combining, against what its papers say, and against itself."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as drawn

from mlx_peft.adaptation.combining.part import numbered
from mlx_peft.adaptation.combining.rules import combined, elected, kept, largest
from mlx_peft.config.combination import RULES, Combination, combination
from mlx_peft.core.errors import UserError

ROUNDING = 1e-5
"""Relative to the largest: float32 here, float64 in what it is compared with."""

NUMBERS = st.floats(-8, 8, width=32).filter(lambda x: x == 0 or abs(x) > 1e-3)
WEIGHTS = st.lists(st.floats(-2, 2, width=32), min_size=4, max_size=4)
STACKS = drawn.arrays(np.float32, st.tuples(st.integers(1, 4), st.integers(1, 6), st.integers(1, 5)), elements=NUMBERS)


def unused(number: int) -> np.random.Generator:
    raise AssertionError("nothing is drawn")


def ties_of_the_paper(stack: np.ndarray, density: float) -> np.ndarray:
    """Yadav et al. 2023, algorithm 1, as it is written there: trim, elect, merge, for one vector a task."""
    trimmed = []
    for tau in stack.reshape(len(stack), -1).astype(np.float64):
        count = int(density * tau.size)
        threshold = np.sort(np.abs(tau))[::-1][count - 1] if count else np.inf
        trimmed.append(np.where(np.abs(tau) >= threshold, tau, 0))
    merged = np.zeros(stack[0].size)
    for p in range(stack[0].size):
        values = [tau[p] for tau in trimmed]
        mass = {sign: sum(abs(v) for v in values if np.sign(v) == sign) for sign in (1, -1)}
        gamma = 1 if mass[1] >= mass[-1] else -1
        agreeing = [v for v in values if np.sign(v) == gamma]
        merged[p] = np.mean(agreeing) if agreeing else 0
    return merged.reshape(stack.shape[1:])


@given(STACKS, st.sampled_from([0.2, 0.5, 0.8, 1.0]), st.randoms(use_true_random=False))
def test_ties_is_the_papers(stack, density, random):
    """Of magnitudes that all differ: which of equal ones is trimmed, the paper leaves open."""
    magnitudes = np.linspace(0.01, 1, stack.size)
    random.shuffle(magnitudes)
    stack = (np.where(stack < 0, -1, 1) * magnitudes.reshape(stack.shape)).astype(np.float32)
    ours = combined(list(stack), [1.0] * len(stack), Combination(how="ties", density=density), unused)
    np.testing.assert_allclose(ours, ties_of_the_paper(stack, density), atol=ROUNDING)


@given(STACKS, WEIGHTS)
def test_without_pruning_a_sum_is_the_weighted_sum(stack, weights):
    weights = weights[: len(stack)]
    ours = combined(list(stack), weights, Combination(how="linear"), unused)
    expected = np.tensordot(np.array(weights), stack.astype(np.float64), 1)
    np.testing.assert_allclose(ours, expected, rtol=0, atol=ROUNDING * max(1, np.abs(stack).max()))


@given(STACKS, st.sampled_from(sorted(RULES)), WEIGHTS)
def test_all_that_is_kept_of_one_is_it(stack, how, weights):
    density = None if how == "linear" else 1.0
    [one] = stack[:1]
    np.testing.assert_array_equal(combined([one], [1.0], Combination(how=how, density=density), unused), one)


@given(drawn.arrays(np.float32, (4, 6), elements=NUMBERS), st.floats(0.05, 1))
def test_the_largest_are_kept_and_no_others(array, density):
    kept_ones = largest(array, density)
    count = int(density * array.size)
    assert np.count_nonzero(kept_ones) <= count
    left, taken = np.abs(array[kept_ones == 0]), np.abs(kept_ones[kept_ones != 0])
    assert not taken.size or np.count_nonzero(kept_ones) < count or left.size == 0 or taken.min() >= left.max()
    np.testing.assert_array_equal(kept_ones[kept_ones != 0], array[kept_ones != 0])


def test_of_equal_ones_the_first_are_kept():
    np.testing.assert_array_equal(largest(np.ones((2, 3), np.float32), 0.5), [[1, 1, 1], [0, 0, 0]])


MANY = 20_000
SPREAD = 5
"""Standard deviations within which a mean over MANY draws is: beyond, once in two million draws of a seed."""


@pytest.mark.parametrize("density", [0.1, 0.5, 0.9])
def test_what_is_dropped_at_random_is_made_up_for(density):
    """DARE, Yu et al. 2023, equation 4: the expectation of what is left is what was there."""
    ones = np.ones(MANY, np.float32)
    drawn_ones = kept(ones, RULES["dare_linear"], density, numbered(0, [0], "x"), 0)
    assert set(np.unique(drawn_ones)) == {np.float32(0), np.float32(1) / np.float32(density)}
    deviation = np.sqrt((1 - density) / density / MANY)
    assert abs(drawn_ones.mean() - 1) < SPREAD * deviation


@given(st.integers(0, 2**32 - 1), st.sampled_from(["dare_linear", "dare_ties"]))
@settings(max_examples=20)
def test_a_seed_gives_the_same_again_and_each_adapter_and_tensor_its_own(seed, how):
    stack, way = [np.ones((8, 16), np.float32)] * 2, Combination(how=how, density=0.5, seed=seed)

    def once(numbers: list[int], name: str) -> np.ndarray:
        return np.stack([kept(a, way.rule, 0.5, numbered(way.seed, numbers, name), i) for i, a in enumerate(stack)])

    first = once([0, 1], "a")
    np.testing.assert_array_equal(first, once([0, 1], "a"))
    assert (first[0] != first[1]).any()
    assert (first != once([0, 1], "b")).any()
    np.testing.assert_array_equal(once([1, 2], "a")[0], first[1])  # who else has the tensor does not matter


@given(STACKS)
def test_a_sign_is_elected_by_sum_or_by_number(stack):
    total, most = elected(stack, "total"), elected(stack, "frequency")
    sums = stack.astype(np.float64).sum(axis=0)
    clear = np.abs(sums) > 1e-4
    np.testing.assert_array_equal(total[clear], np.sign(sums)[clear])
    np.testing.assert_array_equal(most, np.where(np.sign(stack).sum(axis=0) >= 0, 1, -1))


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"how": "cta"}, "unknown way 'cta'; did you mean 'cat'"),
        ({"how": "ties"}, "ties keeps a share of each adapter's elements: say which"),
        ({"how": "cat", "density": 0.5}, "cat has no use for density"),
        ({"how": "linear", "rank": 4}, "linear has no use for rank"),
        ({"how": "ties", "density": 0.5, "seed": 1}, "ties has no use for seed"),
        ({"how": "svd", "majority_sign_method": "total"}, "svd has no use for majority_sign_method"),
        ({"how": "dare_linear", "density": 0.0}, "density: should be greater than 0"),
        ({"how": "ties", "density": 20}, "density: should be less than or equal to 1"),
        ({"how": "svd", "rank": 10**9}, "rank: should be less than or equal to 65536"),
    ],
)
def test_what_does_not_go_together_is_said(asked, message):
    with pytest.raises(UserError, match=message):
        combination(**{"rank": None, "density": None, "seed": None, "majority_sign_method": None} | asked)

"""Intervals and tests beside those of scipy, statsmodels and scikit-posthocs, and beside what they promise."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scikit_posthocs
from scipy import stats
from statsmodels.stats.multitest import multipletests

from mlx_peft.report.groups import spread
from mlx_peft.report.significance import (
    CONFIDENCE,
    against_the_best,
    friedman,
    holm,
    paired_bootstrap,
    places,
    signed_rank,
    t_interval,
)

DRAWN = 0.01
"""Of 9,999 samples a share of 0.5 has a standard error of 0.005; two such are nearly always less apart than this."""


def test_the_t_interval_is_scipy_s() -> None:
    values = [0.90, 0.94, 0.95]
    found = spread(values)
    assert found is not None
    theirs = stats.t.interval(CONFIDENCE, len(values) - 1, loc=np.mean(values), scale=stats.sem(values))
    assert found.interval == pytest.approx(theirs)
    assert found.interval == pytest.approx(stats.ttest_1samp(values, 0).confidence_interval(CONFIDENCE))
    alone = spread([0.9])
    assert alone is not None and alone.interval is None, "of one measurement nothing can be said"


@pytest.mark.parametrize("n", [2, 3, 5])
def test_the_t_interval_has_the_mean_as_often_as_it_says(n: int) -> None:
    """Of 20,000 draws the share has a standard error of 0.0015."""
    values = np.random.default_rng(n).normal(0.7, 0.02, (20_000, n))
    ends = np.array([t_interval(row.mean(), row.std(ddof=1), n) for row in values])
    inside = ((ends[:, 0] <= 0.7) & (ends[:, 1] >= 0.7)).mean()
    assert inside == pytest.approx(CONFIDENCE, abs=5 * 0.0015)


def answers(difference: float, images: int = 400, seeds: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """What two models' answers are worth, seeds averaged, on the same images, some of which are hard for both."""
    random = np.random.default_rng(seed)
    easy = random.beta(2, 1, images)
    first, second = (
        np.mean([random.random(images) < np.clip(easy + shift, 0, 1) for _ in range(seeds)], axis=0)
        for shift in (difference, 0.0)
    )
    return first, second


@pytest.mark.parametrize("difference", [0.0, 0.03, 0.1])
def test_the_paired_bootstrap_is_scipy_s(difference: float) -> None:
    first, second = answers(difference)
    found = paired_bootstrap(first, second)
    theirs = stats.bootstrap(
        (first, second), lambda a, b, axis: np.mean(a - b, axis=axis), paired=True, method="percentile", rng=1
    )
    low, high = theirs.confidence_interval
    assert found.difference == pytest.approx(np.mean(first - second))
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.05 * (high - low))
    moved = theirs.bootstrap_distribution - found.difference
    assert found.p == pytest.approx((np.abs(moved) >= abs(found.difference)).mean(), abs=DRAWN)


@pytest.mark.parametrize("difference", [0.02, 0.05])
def test_the_paired_bootstrap_agrees_with_a_permutation_test(difference: float) -> None:
    """Another null, signs that are turned: on 400 images the two p are close, not equal."""
    first, second = answers(difference)

    def mean(x: np.ndarray, y: np.ndarray, axis: int) -> np.ndarray:
        return np.mean(x - y, axis=axis)

    theirs = stats.permutation_test((first, second), mean, permutation_type="samples", vectorized=True, rng=1)
    assert paired_bootstrap(first, second).p == pytest.approx(theirs.pvalue, abs=3 * DRAWN)


def test_the_paired_bootstrap_is_that_of_all_samples_that_there_are() -> None:
    """Of four images 256 samples can be drawn: each is taken once, where the computed one convolves."""
    first, second = np.array([1, 2 / 3, 1, 0]), np.array([1 / 2, 1, 0, 0])
    every = np.array(list(itertools.product(range(4), repeat=4)))
    means, difference = (first - second)[every].mean(1), np.mean(first - second)
    found = paired_bootstrap(first, second)
    assert found.p == pytest.approx((np.abs(means - difference) >= abs(difference) - 1e-12).mean(), abs=1e-12)
    lowest, highest = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], method="inverted_cdf")
    assert (found.low, found.high) == pytest.approx((lowest, highest))


def test_alike_models_are_seldom_told_apart() -> None:
    """Of 400 pairs without a difference the share below 5 % has a standard error of 0.011."""
    p = [paired_bootstrap(*answers(0.0, images=200, seed=seed)).p for seed in range(400)]
    assert np.mean(np.array(p) < 0.05) == pytest.approx(0.05, abs=3 * 0.011)


def test_equal_answers_do_not_differ_and_what_differs_much_survives_many_comparisons() -> None:
    same = np.array([1.0, 0.0, 2 / 3])
    assert paired_bootstrap(same, same).p == 1
    assert 1000 * paired_bootstrap(*answers(0.3)).p < 0.05
    tenths = np.random.default_rng(0).random(300)
    assert paired_bootstrap(tenths + np.pi / 50, tenths).difference == pytest.approx(np.pi / 50), "no whole multiples"


@pytest.mark.parametrize("rows", [3, 10, 30])
def test_of_many_that_are_alike_the_best_is_seldom_told_from_any(rows: int) -> None:
    """That the best is known from the same images is corrected for: the normal approximation of as many alike means.

    Of 4,000 draws a share of 5 % has a standard error of 0.0035. With Holm's correction alone 30 alike rows would give
    a false difference in more than a fifth of all tables.
    """
    means = np.random.default_rng(rows).standard_normal((4000, rows))
    wrong = {"pairs": 0, "holm": 0}
    for row in means:
        best = row.argmax()
        p = 2 * stats.norm.sf((row[best] - np.delete(row, best)) / np.sqrt(2))
        wrong["pairs"] += min(against_the_best(p.tolist())) < 0.05
        wrong["holm"] += min(holm(p.tolist())) < 0.05
    assert wrong["pairs"] / len(means) <= 0.05 + 3 * 0.0035
    assert wrong["holm"] > wrong["pairs"]


def test_a_row_that_is_told_apart_leaves_the_pairs_of_the_others() -> None:
    assert against_the_best([0.01]) == [0.01]
    assert against_the_best([0.02, 0.001, 0.03]) == pytest.approx([0.02 * 3, 0.001 * 6, 0.03 * 1 * 2])
    assert against_the_best([]) == []


def test_wilcoxon_s_test_is_scipy_s_and_zeros_are_shared_out() -> None:
    first = np.array([0.70, 0.72, 0.68, 0.91, 0.55, 0.63, 0.80, 0.77])
    second = first - np.array([0.02, 0.01, -0.005, 0.0, 0.03, 0.015, 0.04, 0.025])
    assert signed_rank(first, second) == pytest.approx(
        stats.wilcoxon(np.round(first - second, 12), zero_method="zsplit").pvalue
    )
    assert signed_rank(first, first) == 1
    of_six = np.arange(1, 7) / 100
    assert signed_rank(of_six, of_six * 0) == pytest.approx(2 / 2**6), "the least that six sets can give"


def test_holm_s_correction_is_statsmodels_s() -> None:
    p = [0.01, 0.04, 0.03, 0.005, 0.2, 0.04]
    assert holm(p) == pytest.approx(multipletests(p, method="holm")[1])
    assert holm([]) == []


def test_friedman_s_test_and_the_places_are_scipy_s() -> None:
    scores = np.array([[0.9, 0.8, 0.7], [0.6, 0.6, 0.5], [0.8, 0.9, 0.7], [0.7, 0.6, 0.5]])
    assert friedman(scores) == pytest.approx(stats.friedmanchisquare(*scores.T).pvalue)
    assert places(scores).tolist() == [[1, 2, 3], [1.5, 1.5, 3], [2, 1, 3], [1, 2, 3]]
    assert friedman(np.ones((4, 3))) == 1
    noisy = scores + np.array([[0, 0, 0], [0, 1e-16, 0], [0, 0, 0], [0, 0, 0]])
    assert places(noisy).tolist() == places(scores).tolist() and friedman(noisy) == friedman(scores)
    assert scikit_posthocs.posthoc_nemenyi_friedman(scores).shape == (3, 3)

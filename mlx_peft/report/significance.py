"""What of a difference is more than chance: over the images of one set, and over several sets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LEVEL = 0.05
"""A difference that chance alone would give more seldom than this is significant."""

CONFIDENCE = 0.95
"""An interval has the true mean so often."""

RESAMPLES = 9999
"""Bootstrap samples, at least: the smallest p that they can give is one in as many and one."""

FEWEST_SETS = 6
"""Of fewer sets, no outcome of the signed-rank test is as seldom as LEVEL: the least likely one is 2 in 2^5."""


def t_interval(mean: float, deviation: float, n: int) -> tuple[float, float]:
    """Student's interval of a mean: ``mean ± t(n - 1) deviation / sqrt(n)``, for two or more measurements."""
    from scipy.special import stdtrit

    half = float(stdtrit(n - 1, (1 + CONFIDENCE) / 2)) * deviation / n**0.5
    return mean - half, mean + half


@dataclass(frozen=True)
class Paired:
    """Two models on the same images.

    Attributes:
        difference: of their means, the first less the second.
        low, high: the percentile interval of the difference.
        p: how often chance alone would give one as large, in either direction.
    """

    difference: float
    low: float
    high: float
    p: float


def paired_bootstrap(
    first: np.ndarray, second: np.ndarray, *, comparisons: int = 1, resamples: int = RESAMPLES, seed: int = 0
) -> Paired:
    """The bootstrap over images of the difference of two means (Efron and Tibshirani 1993, sections 13.3 and 16.4).

    A sample of n images drawn from n with replacement has of each value as many as a multinomial draw gives: the same
    distribution as of drawing images, at the cost of the few values that a share of seeds can take. For p the
    differences are moved to the mean 0; the test is two-sided.

    Args:
        first, second: float ``(images,)``, what each model's answer on an image is worth, seeds averaged.
        comparisons: how many such tests are to be corrected together: there are samples enough for all of them.
    """
    values, times = np.unique(np.round(first - second, 12), return_counts=True)
    n, drawn = len(first), max(resamples, round(2 * comparisons / LEVEL))
    counts = np.random.default_rng(seed).multinomial(n, times / n, size=drawn)
    means, difference = counts @ values / n, float(np.mean(first - second))
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    as_large = np.abs(means - difference) >= abs(difference) - 1e-12
    return Paired(difference, float(low), float(high), (1 + int(as_large.sum())) / (1 + drawn))


def signed_rank(first: np.ndarray, second: np.ndarray) -> float:
    """p of Wilcoxon's signed-rank test, two-sided, of two methods' scores on the same sets.

    Differences of zero are shared out between both signs (Demšar 2006, section 3.1.3).
    """
    from scipy.stats import wilcoxon

    differences = np.round(np.subtract(first, second), 12)
    return float(wilcoxon(differences, zero_method="zsplit").pvalue) if differences.any() else 1.0


def holm(p: Sequence[float]) -> list[float]:
    """The p of several tests, corrected together (Holm 1979): whichever stays below LEVEL may be believed with it."""
    order = np.argsort(p, kind="stable")
    factors = len(p) - np.arange(len(p))
    adjusted = np.minimum(1, np.maximum.accumulate(np.asarray(p, float)[order] * factors))
    found = np.empty(len(p))
    found[order] = adjusted
    return [float(value) for value in found]


def places(scores: np.ndarray) -> np.ndarray:
    """The place of each method on each set, 1 for the best, equal ones sharing theirs: ``(sets, methods)`` likewise."""
    from scipy.stats import rankdata

    found: np.ndarray = rankdata(-np.asarray(scores), axis=1)
    return found


def friedman(scores: np.ndarray) -> float:
    """p of Friedman's test that all methods are alike, of ``(sets, methods)``, three methods or more."""
    from scipy.stats import friedmanchisquare

    if not np.ptp(scores, axis=1).any():
        return 1.0  # all are equal on each set, and there is nothing to divide by
    return float(friedmanchisquare(*np.asarray(scores).T).pvalue)

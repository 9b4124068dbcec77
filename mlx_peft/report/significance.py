"""What of a difference is more than chance: over the images of one set, and over several sets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LEVEL = 0.05
"""A difference that chance alone would give more seldom than this is significant."""

CONFIDENCE = 0.95
"""An interval has the true mean so often."""

MOST_PARTS = 10_000
"""A difference that is no multiple of a larger fraction is rounded to this part of one."""

EQUAL = 1e-9
"""Two means that are less apart are equal: which of them is larger follows from the order of their sums."""

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


def paired_bootstrap(first: np.ndarray, second: np.ndarray) -> Paired:
    """The bootstrap over images of the difference of two means (Efron and Tibshirani 1993, sections 13.3 and 16.4).

    A sample is n images drawn from n with replacement. Where answers are right or wrong, and seeds are averaged,
    differences are whole multiples of a fraction; then the distribution of a sample's sum is that of one image's
    convolved n times, and is computed as such, in place of drawing samples. For p the differences are moved to the mean
    0; the test is two-sided.

    Args:
        first, second: float ``(images,)``, what each model's answer on an image is worth, seeds averaged.
    """
    differences = np.asarray(first, float) - np.asarray(second, float)
    n, parts = len(differences), _parts(differences)
    whole = np.rint(differences * parts).astype(int)
    lowest, observed = int(whole.min()), int(whole.sum())
    share = np.bincount(whole - lowest) / n
    length = n * (len(share) - 1) + 1
    likely = np.clip(np.fft.irfft(np.fft.rfft(share, _fast(length)) ** n, _fast(length))[:length], 0, 1)
    sums = np.arange(length) + n * lowest
    below = np.cumsum(likely)
    low, high = (sums[np.searchsorted(below, end)] for end in ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2))
    as_large = float(likely[np.abs(sums - observed) >= abs(observed)].sum())
    return Paired(float(differences.mean()), low / parts / n, high / parts / n, min(1.0, as_large))


def _parts(differences: np.ndarray) -> int:
    """Of how many parts of one they are whole multiples; MOST_PARTS where there is no such number."""
    values = np.unique(np.round(differences, 12))
    tried = range(1, MOST_PARTS)
    return next((one for one in tried if np.allclose(values * one, np.rint(values * one), 0, 1e-6)), MOST_PARTS)


def _fast(length: int) -> int:
    """The next length of which a Fourier transform is quick."""
    from scipy.fft import next_fast_len

    return int(next_fast_len(length, real=True))


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


def against_the_best(p: Sequence[float]) -> list[float]:
    """The p of the highest of several means against each other one, corrected together.

    As ``holm``, with the number of pairs in place of the number of tests. Which one is the highest is known from the
    same images, so any pair could have been tested: of k that are alike, the highest and the lowest are as far apart as
    the range of k. Once one is told apart, the pairs of the others are left (Shaffer 1986).
    """
    order = np.argsort(p, kind="stable")
    left = len(p) + 1 - np.arange(len(p))
    adjusted = np.minimum(1, np.maximum.accumulate(np.asarray(p, float)[order] * left * (left - 1) / 2))
    found = np.empty(len(p))
    found[order] = adjusted
    return [float(value) for value in found]


def places(scores: np.ndarray) -> np.ndarray:
    """The place of each method on each set, 1 for the best, equal ones sharing theirs: ``(sets, methods)`` likewise."""
    from scipy.stats import rankdata

    found: np.ndarray = rankdata(-_without_noise(scores), axis=1)
    return found


def friedman(scores: np.ndarray) -> float:
    """p of Friedman's test that all methods are alike, of ``(sets, methods)``, three methods or more."""
    from scipy.stats import friedmanchisquare

    if not np.ptp(_without_noise(scores), axis=1).any():
        return 1.0  # all are equal on each set, and there is nothing to divide by
    return float(friedmanchisquare(*_without_noise(scores).T).pvalue)


def _without_noise(scores: np.ndarray) -> np.ndarray:
    """Scores of which those that are equal but for the order of a sum are equal."""
    found: np.ndarray = np.round(np.asarray(scores, float) / EQUAL) * EQUAL
    return found

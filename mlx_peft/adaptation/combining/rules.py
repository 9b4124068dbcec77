"""One tensor of several adapters made one, element by element: sums, pruning, and the election of signs.

As Hugging Face PEFT computes them (``peft.utils.merge_utils``), in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from mlx_peft.config.combination import Combination, MajoritySign, Rule

Array = np.ndarray
"""Float32."""

Stream = Callable[[int], np.random.Generator]
"""The random numbers of the adapter with a number."""


def combined(arrays: Sequence[Array], weights: Sequence[float], combination: Combination, stream: Stream) -> Array:
    """The arrays, all of one shape, as one of it.

    Without an election sum_i w_i p(x_i), p being what is kept of an array. With one (TIES, Yadav et al. 2023,
    arXiv 2306.01708): the mean of w_i p(x_i) over those i whose p(x_i) has the elected sign.

    Args:
        stream: of an array's number in this list.
    """
    rule, density = combination.rule, combination.density
    stack = np.stack([kept(array, rule, density or 1.0, stream, i) for i, array in enumerate(arrays)])
    weighted = stack * np.asarray(weights, np.float32).reshape(-1, *(1 for _ in stack.shape[1:]))
    if not rule.elects:
        return summed(weighted)
    agreeing = np.sign(stack) == elected(stack, combination.majority_sign_method)
    mean: Array = summed(weighted * agreeing) / np.maximum(agreeing.sum(axis=0), 1).astype(np.float32)
    return mean


def kept(array: Array, rule: Rule, density: float, stream: Stream, number: int) -> Array:
    """What a rule keeps of an array: ``density`` of its elements, the others being zero.

    What is kept at random is divided by ``density``, so that its expectation is the array (DARE, Yu et al. 2023,
    arXiv 2311.03099).
    """
    if rule.keeps is None or density >= 1:
        return array
    if rule.keeps == "largest":
        return largest(array, density)
    drawn = stream(number).random(array.shape, np.float32) < density
    scaled: Array = (array * drawn) / np.float32(density)
    return scaled


def largest(array: Array, density: float) -> Array:
    """The array with only its int(density * size) elements of the largest magnitude; of equal ones the first."""
    flat = np.zeros(array.size, np.float32)
    order = np.argsort(-np.abs(array), axis=None, kind="stable")[: int(density * array.size)]
    flat[order] = array.ravel()[order]
    shaped: Array = flat.reshape(array.shape)
    return shaped


def elected(stack: Array, method: MajoritySign) -> Array:
    """The sign, 1 or -1, that each element has in the ``total`` of all arrays, or in most of them; 1 where it is even.

    ``stack`` is ``(arrays, *shape)``; what this returns, ``shape``.
    """
    votes = stack if method == "total" else np.sign(stack)
    signs: Array = np.where(summed(votes) >= 0, np.float32(1), np.float32(-1))
    return signs


def summed(stack: Array) -> Array:
    """The sum over the first axis, from the first to the last, whatever the others' sizes."""
    total: Array = stack[0].copy()
    for array in stack[1:]:
        total += array
    return total

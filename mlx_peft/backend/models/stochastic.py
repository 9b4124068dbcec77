"""Dropout and stochastic depth whose draws are a pure function of a key, so that a step can be replayed.

Outside of ``randomness`` nothing is dropped: evaluation and parity need no other switch.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import mlx.core as mx
import mlx.nn as nn

_key: ContextVar[mx.array | None] = ContextVar("key", default=None)

SMALLEST = 2.0**-24
"""The least that is drawn where a logarithm is taken: float32 draws have 24 bits."""


@contextmanager
def randomness(seed: int | mx.array | None) -> Iterator[None]:
    """Within it, layers in training mode draw from ``seed``: a number, or a key of ``mx.random``; None: not at all."""
    token = _key.set(mx.random.key(seed) if isinstance(seed, int) else seed)
    try:
        yield
    finally:
        _key.reset(token)


def current_key() -> mx.array | None:
    """What the innermost ``randomness`` draws from next; None outside of any."""
    return _key.get()


def next_key() -> mx.array | None:
    """A fresh key of the innermost ``randomness``; None outside of any."""
    if (current := _key.get()) is None:
        return None
    following, key = mx.random.split(current)
    _key.set(following)
    return key


def drawing(training: bool) -> bool:
    """Whether a layer, in training mode or not, draws now."""
    return training and _key.get() is not None


def keep(x: mx.array, rate: float, shape: tuple[int, ...], training: bool) -> mx.array:
    """x * m / (1 - rate), m ~ Bernoulli(1 - rate) of ``shape``, broadcast over x; x itself where nothing is dropped."""
    if not rate or not training or (key := next_key()) is None:
        return x
    mask = mx.random.bernoulli(1 - rate, shape, key=key)
    return mx.where(mask, x * (1 / (1 - rate)), mx.zeros((), x.dtype))


def logistic(x: mx.array, training: bool) -> mx.array:
    """x + g, g ~ Logistic(0, 1) for each element, the difference of two Gumbel draws; x where none is drawn."""
    if not training or (key := next_key()) is None:
        return x
    u = mx.maximum(mx.random.uniform(shape=x.shape, key=key), SMALLEST)
    return x + (mx.log(u) - mx.log1p(-u)).astype(x.dtype)


def normal(x: mx.array) -> mx.array:
    """N(0, 1) for each element of x, in its type; within ``randomness``."""
    return mx.random.normal(x.shape, key=next_key()).astype(x.dtype)


def sampled(mean: mx.array, log_variance: mx.array, training: bool) -> mx.array:
    """mean + e exp(log_variance / 2), e ~ N(0, 1) for each element; the mean where none is drawn."""
    if not drawing(training):
        return mean
    return mean + normal(mean) * mx.exp(log_variance / 2)


class Dropout(nn.Module):
    """Each element is dropped with probability ``rate`` (Srivastava et al. 2014)."""

    def __init__(self, rate: float = 0.0):
        super().__init__()
        self.rate = rate

    def __call__(self, x: mx.array) -> mx.array:
        return keep(x, self.rate, x.shape, self.training)


class DropPath(nn.Module):
    """Stochastic depth (Huang et al. 2016): a residual branch is dropped for a whole image."""

    def __init__(self, rate: float = 0.0):
        super().__init__()
        self.rate = rate

    def __call__(self, x: mx.array) -> mx.array:
        return keep(x, self.rate, (x.shape[0],) + (1,) * (x.ndim - 1), self.training)

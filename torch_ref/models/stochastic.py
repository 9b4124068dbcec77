"""Dropout and stochastic depth whose draws are a pure function of a seed, so that a step can be replayed.

Outside of ``randomness`` nothing is dropped: evaluation and parity need no other switch.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import numpy as np
import torch
from torch import Tensor, nn

_active: ContextVar[bool] = ContextVar("active", default=False)

SMALLEST = 2.0**-24
"""The least that is drawn where a logarithm is taken: float32 draws have 24 bits."""


@contextmanager
def randomness(seed: int, rank: int = 0) -> Iterator[None]:
    """Within it, layers in training mode draw from ``seed``, each process of a run on its own. torch's own generators
    are left as they were."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(int(np.random.SeedSequence([seed, rank]).generate_state(1, np.uint64)[0]) if rank else seed)
        token = _active.set(True)
        try:
            yield
        finally:
            _active.reset(token)


def drawing(training: bool) -> bool:
    """Whether a layer, in training mode or not, draws now."""
    return training and _active.get()


def keep(x: Tensor, rate: float, shape: tuple[int, ...], training: bool) -> Tensor:
    """x * m / (1 - rate), m ~ Bernoulli(1 - rate) of ``shape``, broadcast over x; x itself where nothing is dropped."""
    if not rate or not drawing(training):
        return x
    mask = torch.empty(shape, dtype=x.dtype, device=x.device).bernoulli_(1 - rate)
    return x * mask.div_(1 - rate)


def logistic(x: Tensor, training: bool) -> Tensor:
    """x + g, g ~ Logistic(0, 1) for each element, the difference of two Gumbel draws; x where none is drawn."""
    if not drawing(training):
        return x
    u = torch.rand(x.shape, device=x.device).clamp_(min=SMALLEST)
    return x + (torch.log(u) - torch.log1p(-u)).to(x.dtype)


def normal(x: Tensor) -> Tensor:
    """N(0, 1) for each element of x, in its type; within ``randomness``."""
    return torch.randn(x.shape, device=x.device).to(x.dtype)


def sampled(mean: Tensor, log_variance: Tensor, training: bool) -> Tensor:
    """mean + e exp(log_variance / 2), e ~ N(0, 1) for each element; the mean where none is drawn."""
    if not drawing(training):
        return mean
    return mean + normal(mean) * torch.exp(log_variance / 2)


class Dropout(nn.Module):
    """Each element is dropped with probability ``rate`` (Srivastava et al. 2014)."""

    def __init__(self, rate: float = 0.0):
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        return keep(x, self.rate, x.shape, self.training)


class DropPath(nn.Module):
    """Stochastic depth (Huang et al. 2016): a residual branch is dropped for a whole image."""

    def __init__(self, rate: float = 0.0):
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        return keep(x, self.rate, (x.shape[0],) + (1,) * (x.ndim - 1), self.training)

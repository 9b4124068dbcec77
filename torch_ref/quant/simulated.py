"""Simulated quantisation: operations that round what enters them to what its codes stand for, in float32.

How a quantiser rounds, and what its numbers are, is in ``mlx_peft/codes/quantizers.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from mlx_peft.codes.quantizers import LogSqrt2, Quantizer, Uniform
from torch_ref.models.attention import probabilities

Before = Callable[[Tensor], Tensor]
"""A function that an operand goes through before it is multiplied."""


def uniform(quantizer: Uniform, x: Tensor) -> Tensor:
    """(clip(rint(x / scale) + zero_point, 0, 2^bits - 1) - zero_point) scale."""
    codes = torch.clamp(torch.round(x * quantizer.inverse) + quantizer.zero_point, 0, quantizer.top)
    return (codes - quantizer.zero_point) * quantizer.scale


def log_sqrt2(quantizer: LogSqrt2, x: Tensor) -> Tensor:
    """scale sqrt(2)^-code, code = clip(rint(-2 log2(x / scale)), 0, 2^bits - 1)."""
    codes = torch.clamp(torch.round(-2 * torch.log2(x * quantizer.inverse)), 0, quantizer.top)
    return torch.from_numpy(quantizer.levels).to(x.device)[codes.long()]


QUANTIZERS = {Uniform: uniform, LogSqrt2: log_sqrt2}


def quantize(quantizer: Quantizer, x: Tensor) -> Tensor:
    """What the codes of x stand for."""
    return QUANTIZERS[type(quantizer)](quantizer, x)


class Preceded(nn.Module):
    """base_layer(before(x))."""

    def __init__(self, base_layer: nn.Module, before: Before):
        super().__init__()
        self.base_layer = base_layer
        self.before = before

    def forward(self, x: Tensor) -> Tensor:
        return self.base_layer(self.before(x))


class Attend:
    """softmax(q k^T / sqrt(d) + bias) v as ``models.attention.attend``; q, k, v and softmax pass ``before`` first."""

    def __init__(self, before: Mapping[str, Before]):
        self.before = before

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
        q, k, v = (self.before[name](x) for name, x in (("q", q), ("k", k), ("v", v)))
        x = self.before["softmax"](probabilities(q, k, bias)) @ v
        return x.transpose(1, 2).reshape(x.shape[0], x.shape[2], -1)

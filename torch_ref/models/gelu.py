"""The exact GELU."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def gelu(x: Tensor) -> Tensor:
    """x Phi(x), Phi the standard normal's cumulative distribution (Hendrycks and Gimpel 2016, arXiv 1606.08415)."""
    return F.gelu(x)

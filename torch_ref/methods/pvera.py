"""PVeRA: VeRA whose second projection reads draws; their means and variances are what the first one gives.

y = W x + b + lambda_b * (B z), z = m + e * exp(v / 2), [m, v] = lambda_d * (A drop(x)); A ``(2 r, in)`` and B
``(out, r)`` are the leading columns and rows of two matrices as large as the largest adapted layer; lambda_d
``(2 r,)``, lambda_b ``(out,)`` are trained. In training e ~ N(0, 1) for each token and each of the r; otherwise e = 0,
and y is W x + b with one matrix added to W. A, B, lambda_d and lambda_b begin as VeRA's.
Fillioux et al. 2025 (arXiv 2512.07703), section 3; drawn as Hugging Face PEFT draws them.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from torch_ref.methods.joined import joined
from torch_ref.methods.lowrank import narrowed
from torch_ref.methods.parts import placed
from torch_ref.methods.vera import VeRALinear, VeRAMethod
from torch_ref.models.stochastic import drawing, sampled


class PVeRALinear(VeRALinear):
    """Such a layer whose A has two halves: what they give are means, and the logarithms of variances, of B's inputs.

    With ``parts``, each part has its own draws.
    """

    word: ClassVar[str] = "pvera"

    def forward(self, x: Tensor) -> Tensor:
        if not drawing(self.training):
            return super().forward(x)
        A, d, B = self.scaled()
        rank = d.shape[2]
        B = placed(B.reshape(-1, rank), self.parts)

        def drawn(x: Tensor) -> Tensor:
            halves = narrowed(self.dropout(x), A).reshape(*x.shape[:-1], 1, 2, rank) * d.to(x.dtype)
            return sampled(halves[..., 0, :], halves[..., 1, :], self.training).flatten(-2)

        if x.dtype == torch.float32:
            return self.base_layer(x) + drawn(x) @ B.T
        return joined(self.base_layer, x, lambda x: (drawn(x), None), B)


class PVeRAMethod(VeRAMethod):
    """VeRA's, with such layers."""

    layer: ClassVar[type[VeRALinear]] = PVeRALinear

"""PVeRA: VeRA whose second projection reads draws; their means and variances are what the first one gives.

y = W x + b + lambda_b * (B z), z = m + e * exp(v / 2), [m, v] = lambda_d * (A drop(x)); A ``(2 r, in)`` and B
``(out, r)`` are the leading columns and rows of two matrices as large as the largest adapted layer; lambda_d
``(2 r,)``, lambda_b ``(out,)`` are trained. In training e ~ N(0, 1) for each token and each of the r; otherwise e = 0,
and y is W x + b with one matrix added to W. A, B, lambda_d and lambda_b begin as VeRA's.
Fillioux et al. 2025 (arXiv 2512.07703), section 3; drawn as Hugging Face PEFT draws them.
"""

from __future__ import annotations

from typing import ClassVar

import mlx.core as mx

from mlx_peft.backend.methods.joined import joined
from mlx_peft.backend.methods.parts import placed
from mlx_peft.backend.methods.vera import VeRALinear, VeRAMethod
from mlx_peft.backend.models.stochastic import drawing, sampled


class PVeRALinear(VeRALinear):
    """Such a layer whose A has two halves: what they give are means, and the logarithms of variances, of B's inputs.

    With ``parts``, each part has its own draws.
    """

    word: ClassVar[str] = "pvera"

    def __call__(self, x: mx.array) -> mx.array:
        if not drawing(self.training):
            return super().__call__(x)
        A, d, B = self.scaled()
        rank = d.shape[2]
        B = placed(B.reshape(-1, rank), self.parts)

        def drawn(x: mx.array) -> mx.array:
            halves = (self.dropout(x) @ A.astype(x.dtype).T).reshape(*x.shape[:-1], 1, 2, rank) * d.astype(x.dtype)
            return sampled(halves[..., 0, :], halves[..., 1, :], self.training).flatten(-2)

        if x.dtype == mx.float32:
            return self.base_layer(x) + drawn(x) @ B.T
        return joined(self.base_layer, x, lambda x: (drawn(x), None), B)


class PVeRAMethod(VeRAMethod):
    """VeRA's, with such layers."""

    layer: ClassVar[type[VeRALinear]] = PVeRALinear

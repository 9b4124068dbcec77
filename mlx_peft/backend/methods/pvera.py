"""PVeRA: VeRA whose second projection reads draws; their means and variances are what the first one gives.

y = W x + b + lambda_b * (B z), z = m + e * exp(v / 2), [m, v] = lambda_d * (A drop(x)); A ``(2 r, in)`` and B
``(out, r)`` are the leading columns and rows of two matrices as large as the largest adapted layer; lambda_d
``(2 r,)``, lambda_b ``(out,)`` are trained. In training e ~ N(0, 1) for each token and each of the r; otherwise e = 0,
and y is W x + b with one matrix added to W. A, B, lambda_d and lambda_b begin as VeRA's.
Fillioux et al. 2025 (arXiv 2512.07703), section 3; drawn as Hugging Face PEFT draws them.
"""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from mlx_peft.adaptation.projections import projections
from mlx_peft.backend.methods.lowrank import LowRankLinear
from mlx_peft.backend.methods.method import Method
from mlx_peft.backend.methods.parts import among_all, placed
from mlx_peft.backend.methods.targets import wrap
from mlx_peft.backend.models.layers import Linear
from mlx_peft.backend.models.stochastic import drawing, sampled
from mlx_peft.backend.models.vit import VisionTransformer
from mlx_peft.config.methods import PVeRA
from mlx_peft.vit.sites import PARTS, Site, widths


class PVeRALinear(LowRankLinear):
    """A frozen linear layer with a trained scaling of shared projections, in float32 whatever the base's dtype.

    With ``parts``, some of q, k and v of a fused qkv are adapted, each with its own vectors and draws; they are held
    one after the other, ``pvera_lambda_d (parts 2 r,)`` and ``pvera_lambda_b (parts out/3,)``, and each part takes B's
    leading out/3 rows. The rows of the other parts stay untouched.

    Args:
        base_layer: the layer; it is kept as ``base_layer``.
        shared: holds ``pvera_A`` and ``pvera_B``, at least as large as the layer; read anew at each call.
        d_initial: lambda_d at the start.
        dropout: probability on the input of A.
        parts: some of ``("q", "k", "v")``, in this order; empty for the whole layer.
    """

    def __init__(
        self,
        base_layer: Linear,
        shared: nn.Module,
        d_initial: float,
        dropout: float = 0.0,
        parts: tuple[str, ...] = (),
    ):
        super().__init__(base_layer, dropout=dropout)
        rows, count = base_layer.shape[0], max(len(parts), 1)
        self.pvera_lambda_d = mx.full((count * shared.pvera_A.shape[0],), d_initial)
        self.pvera_lambda_b = mx.zeros((rows // len(PARTS) * count if parts else rows,))
        self.parts = parts
        self._shared = (shared,)  # in a tuple, so that it is no child of every layer

    def scaled(self) -> tuple[mx.array, mx.array, mx.array]:
        """A ``(2 r, in)``, and of each part lambda_d ``(parts, 2, r)`` and lambda_b B ``(parts, out/parts, r)``."""
        (shared,), count = self._shared, max(len(self.parts), 1)
        b = self.pvera_lambda_b.reshape(count, -1, 1)
        B = shared.pvera_B[: b.shape[1]]
        return shared.pvera_A[:, : self.base_layer.shape[1]], self.pvera_lambda_d.reshape(count, 2, -1), b * B

    def factors(self) -> tuple[mx.array, mx.array]:
        """Of the means: A's upper half ``(r, in)``, and lambda_b B lambda_d as one ``(out, r)`` matrix."""
        A, d, B = self.scaled()
        rank = d.shape[2]
        return A[:rank], among_all((B * d[:, :1]).reshape(-1, rank), self.parts)

    def __call__(self, x: mx.array) -> mx.array:
        if not drawing(self.training):
            return super().__call__(x)
        A, d, B = self.scaled()
        rank = d.shape[2]
        halves = (self.dropout(x) @ A.astype(x.dtype).T).reshape(*x.shape[:-1], 1, 2, rank) * d.astype(x.dtype)
        z = sampled(halves[..., 0, :], halves[..., 1, :], self.training).flatten(-2)
        return self.base_layer(x) + z @ placed(B.reshape(-1, rank), self.parts).astype(x.dtype).T


class PVeRAMethod(Method[PVeRA]):
    """The projections are drawn from their own key, whatever the seed, and every target is wrapped."""

    def apply(self, model: VisionTransformer, config: PVeRA, seed: int) -> None:
        sites = config.sites(model.architecture)
        A, B = projections(config.projection_key, config.rank, *widths(sites), config.halves)
        model.shared.pvera_A, model.shared.pvera_B = mx.array(A), mx.array(B)
        model.shared.freeze()

        def wrapper(site: Site, layer: Linear) -> PVeRALinear:
            return PVeRALinear(layer, model.shared, config.d_initial, config.dropout, site.parts)

        wrap(model, sites, wrapper)

"""VeRA: random projections that all layers share, frozen; each layer learns how to scale them.

y = W x + b + lambda_b * (B (lambda_d * (A drop(x)))); A ``(r, in)`` and B ``(out, r)`` are the leading columns and rows
of two matrices as large as the largest adapted layer; lambda_d ``(r,)``, lambda_b ``(out,)`` are trained.
Initially A, B ~ U(-b, b), b = sqrt(6 / columns), which is Kaiming uniform, from a key of their own; lambda_d = 0.1 and
lambda_b = 0. Kopiczko et al. 2024 (arXiv 2310.11454), section 3; drawn as Hugging Face PEFT draws them.
"""

from __future__ import annotations

from typing import ClassVar

import mlx.core as mx
import mlx.nn as nn

from mlx_peft.adaptation.projections import projections
from mlx_peft.backend.methods.lowrank import LowRankLinear
from mlx_peft.backend.methods.method import Method
from mlx_peft.backend.methods.parts import among_all
from mlx_peft.backend.methods.targets import wrap
from mlx_peft.backend.models.layers import Linear
from mlx_peft.backend.models.vit import VisionTransformer
from mlx_peft.config.methods.projected import Vectors
from mlx_peft.vit.sites import PARTS, Site, widths


class VeRALinear(LowRankLinear):
    """A frozen linear layer with a trained scaling of shared projections, in float32 whatever the base's dtype.

    The vectors are ``WORD_lambda_d (h r,)``, where A has h r rows and B r columns, and ``WORD_lambda_b (out,)``. With
    ``parts``, some of q, k and v of a fused qkv are adapted, each with its own vectors; they are held one after the
    other, and each part takes B's leading out/3 rows. The rows of the other parts stay untouched.

    Args:
        base_layer: the layer; it is kept as ``base_layer``.
        shared: holds ``WORD_A`` and ``WORD_B``, at least as large as the layer; read anew at each call.
        d_initial: lambda_d at the start.
        dropout: probability on the input of A.
        parts: some of ``("q", "k", "v")``, in this order; empty for the whole layer.
    """

    word: ClassVar[str] = "vera"
    """WORD: what the names of all that is its own begin with."""

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
        self[f"{self.word}_lambda_d"] = mx.full((count * shared[f"{self.word}_A"].shape[0],), d_initial)
        self[f"{self.word}_lambda_b"] = mx.zeros((rows // len(PARTS) * count if parts else rows,))
        self.parts = parts
        self._shared = (shared,)  # in a tuple, so that it is no child of every layer

    def scaled(self) -> tuple[mx.array, mx.array, mx.array]:
        """A ``(h r, in)``, and of each part lambda_d ``(parts, h, r)`` and lambda_b B ``(parts, out/parts, r)``."""
        (shared,), count = self._shared, max(len(self.parts), 1)
        A, B = shared[f"{self.word}_A"], shared[f"{self.word}_B"]
        b = self[f"{self.word}_lambda_b"].reshape(count, -1, 1)
        d = self[f"{self.word}_lambda_d"].reshape(count, -1, B.shape[1])
        return A[:, : self.base_layer.shape[1]], d, b * B[: b.shape[1]]

    def factors(self) -> tuple[mx.array, mx.array]:
        """A's first r rows ``(r, in)``, and lambda_b B lambda_d as one ``(out, r)`` matrix, zero in the rows of
        untouched parts."""
        A, d, B = self.scaled()
        rank = d.shape[2]
        return A[:rank], among_all((B * d[:, :1]).reshape(-1, rank), self.parts)


class VeRAMethod(Method[Vectors]):
    """The projections are drawn from their own key, whatever the seed, and every target is wrapped."""

    layer: ClassVar[type[VeRALinear]] = VeRALinear

    def apply(self, model: VisionTransformer, config: Vectors, seed: int) -> None:
        sites = config.sites(model.architecture)
        A, B = projections(config.projection_key, config.rank, *widths(sites), config.halves)
        model.shared[f"{config.name}_A"], model.shared[f"{config.name}_B"] = mx.array(A), mx.array(B)
        model.shared.freeze()

        def wrapper(site: Site, layer: Linear) -> VeRALinear:
            return self.layer(layer, model.shared, config.d_initial, config.dropout, site.parts)

        wrap(model, sites, wrapper)

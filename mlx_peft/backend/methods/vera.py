"""VeRA: random projections that all layers share, frozen; each layer learns how to scale them.

y = W x + b + lambda_b * (B (lambda_d * (A drop(x)))); A ``(r, in)`` and B ``(out, r)`` are the leading columns and rows
of two matrices as large as the largest adapted layer; lambda_d ``(r,)``, lambda_b ``(out,)`` are trained.
Initially A, B ~ U(-b, b), b = sqrt(6 / columns), which is Kaiming uniform, from a key of their own; lambda_d = 0.1 and
lambda_b = 0. Kopiczko et al. 2024 (arXiv 2310.11454), section 3; drawn as Hugging Face PEFT draws them.
"""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from mlx_peft.adaptation.projections import projections
from mlx_peft.backend.methods.lowrank import LowRankLinear
from mlx_peft.backend.methods.method import Method
from mlx_peft.backend.methods.parts import among_all
from mlx_peft.backend.methods.targets import wrap
from mlx_peft.backend.models.layers import Linear
from mlx_peft.backend.models.vit import VisionTransformer
from mlx_peft.config.methods import VeRA
from mlx_peft.vit.sites import PARTS, Site, widths


class VeRALinear(LowRankLinear):
    """A frozen linear layer with a trained scaling of shared projections, in float32 whatever the base's dtype.

    With ``parts``, some of q, k and v of a fused qkv are adapted, each with its own vectors; they are held one after
    the other, ``vera_lambda_d (parts r,)`` and ``vera_lambda_b (parts out/3,)``, and each part takes B's leading out/3
    rows. The rows of the other parts stay untouched.

    Args:
        base_layer: the layer; it is kept as ``base_layer``.
        shared: holds ``vera_A`` and ``vera_B``, at least as large as the layer; read anew at each call.
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
        self.vera_lambda_d = mx.full((count * shared.vera_A.shape[0],), d_initial)
        self.vera_lambda_b = mx.zeros((rows // len(PARTS) * count if parts else rows,))
        self.parts = parts
        self._shared = (shared,)  # in a tuple, so that it is no child of every layer

    def factors(self) -> tuple[mx.array, mx.array]:
        """A ``(r, in)``, and lambda_b B lambda_d as one ``(out, r)`` matrix, zero in the rows of untouched parts."""
        (shared,), count = self._shared, max(len(self.parts), 1)
        d, b = self.vera_lambda_d.reshape(count, 1, -1), self.vera_lambda_b.reshape(count, -1, 1)
        B = (b * shared.vera_B[: b.shape[1]] * d).reshape(-1, d.shape[2])
        return shared.vera_A[:, : self.base_layer.shape[1]], among_all(B, self.parts)


class VeRAMethod(Method[VeRA]):
    """The projections are drawn from their own key, whatever the seed, and every target is wrapped."""

    def apply(self, model: VisionTransformer, config: VeRA, seed: int) -> None:
        sites = config.sites(model.architecture)
        A, B = projections(config.projection_key, config.rank, *widths(sites))
        model.shared.vera_A, model.shared.vera_B = mx.array(A), mx.array(B)
        model.shared.freeze()

        def wrapper(site: Site, layer: Linear) -> VeRALinear:
            return VeRALinear(layer, model.shared, config.d_initial, config.dropout, site.parts)

        wrap(model, sites, wrapper)

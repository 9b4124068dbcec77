"""MiSS: all shards of a weight's columns get the same update.

y = W x + b + D^T (x_1 + x_2 + ...), x cut into pieces of r inputs, the last filled up with zeros; D ``(r, out)`` is
trained. As B A: B = D^T, and A ``(r, in)`` has a 1 where the column's number leaves the row's on division by r. With
``mini``, D repeats its first ``(r, mini)`` columns. Initially D = 0.
Kang and Yin 2025 (arXiv 2409.15371), section 3, as Hugging Face PEFT computes it.
"""

from __future__ import annotations

import mlx.core as mx

from mlx_peft.backend.methods.lowrank import LowRankLinear
from mlx_peft.backend.methods.method import Method
from mlx_peft.backend.methods.parts import among_all
from mlx_peft.backend.methods.targets import wrap
from mlx_peft.backend.models.layers import Linear
from mlx_peft.backend.models.vit import VisionTransformer
from mlx_peft.config.methods import MiSS
from mlx_peft.vit.sites import Site


class MiSSLinear(LowRankLinear):
    """A frozen linear layer with the same update in all shards, in float32 whatever the base's dtype.

    With ``parts``, some of q, k and v of a fused qkv are adapted: ``miss_block (r, parts out/3)``.

    Args:
        base_layer: the layer; it is kept as ``base_layer``.
        rank: r.
        columns: that D has, which are repeated where the layer has more outputs.
        dropout: probability on the input.
        parts: some of ``("q", "k", "v")``, in this order; empty for the whole layer.
    """

    def __init__(self, base_layer: Linear, rank: int, columns: int, dropout: float = 0.0, parts: tuple[str, ...] = ()):
        super().__init__(base_layer, dropout=dropout)
        self.miss_block = mx.zeros((rank, columns))
        self.parts = parts

    def factors(self) -> tuple[mx.array, mx.array]:
        """A ``(r, in)`` of ones and zeros, and D^T ``(out, r)``, zero in the rows of untouched parts."""
        rows, inputs = self.base_layer.shape
        D = among_all(self.miss_block.T, self.parts)
        A = mx.tile(mx.eye(D.shape[1]), (1, -(-inputs // D.shape[1])))[:, :inputs]
        return A, mx.tile(D, (rows // D.shape[0], 1))


class MiSSMethod(Method[MiSS]):
    """Every target is wrapped; nothing is drawn."""

    def apply(self, model: VisionTransformer, config: MiSS, seed: int) -> None:
        def wrapper(site: Site, layer: Linear) -> MiSSLinear:
            return MiSSLinear(layer, config.rank, config.mini or site.adapted, config.dropout, site.parts)

        wrap(model, config.sites(model.architecture), wrapper)

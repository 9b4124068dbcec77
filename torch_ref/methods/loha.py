"""LoHa: the update of a weight is the product, element by element, of two matrices of low rank.

y = W x + b + s (A_1 B_1 * A_2 B_2) x; A_1, A_2 ``(out, r)``, B_1, B_2 ``(r, in)``; s = alpha / r. The product is one of
rank r^2: the sum, over i and j, of (column i of A_1 * column j of A_2) (row i of B_1 * row j of B_2). Where r^2 is
above the lesser width of the layer, the matrices are multiplied out.
Initially B_2 = 0, A_1 and A_2 ~ U(-1/sqrt(r), 1/sqrt(r)), and B_1 ~ U(-1/sqrt(in), 1/sqrt(in)), which is Kaiming
uniform with a = sqrt 5. Hyeon-Woo et al. 2022 (arXiv 2108.06098), section 2; scaled and initialised as Hugging Face
PEFT does it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mlx_peft.adaptation.products import hadamard_factors
from mlx_peft.config.methods import LoHa
from mlx_peft.vit.sites import Site
from torch_ref.methods.lowrank import LowRankLinear
from torch_ref.methods.method import Method
from torch_ref.methods.parts import placed
from torch_ref.methods.targets import wrap
from torch_ref.models.layers import Linear
from torch_ref.models.vit import VisionTransformer


class LoHaLinear(LowRankLinear):
    """A frozen linear layer with an update of rank r^2, in float32 whatever the base's dtype.

    With ``parts``, some of q, k and v of a fused qkv are adapted, each with its own four factors; they are held
    stacked, ``hada_w1_a (parts out/3, r)`` and ``hada_w1_b (parts r, in)``, and likewise the second two.

    Args:
        base_layer: the layer; it is kept as ``base_layer``.
        factors: the initial A_1, B_1, A_2 and B_2.
        scaling: s.
        parts: some of ``("q", "k", "v")``, in this order; empty for the whole layer.
    """

    def __init__(self, base_layer: Linear, factors: list[Tensor], scaling: float, parts: tuple[str, ...] = ()):
        super().__init__(base_layer, scaling)
        self.hada_w1_a, self.hada_w1_b, self.hada_w2_a, self.hada_w2_b = map(nn.Parameter, factors)
        self.parts = parts

    def factors(self) -> tuple[Tensor, Tensor]:
        """The update without s as B A: of rank r^2 for each part, or of its lesser width, where that is smaller."""
        count, rank = max(len(self.parts), 1), self.hada_w1_a.shape[1]
        a1, a2 = (a.reshape(count, -1, rank) for a in (self.hada_w1_a, self.hada_w2_a))
        b1, b2 = (b.reshape(count, rank, -1) for b in (self.hada_w1_b, self.hada_w2_b))
        rows, inputs = a1.shape[1], b1.shape[2]
        least = min(rows, inputs)
        if rank**2 <= least:
            A, B = b1[:, :, None] * b2[:, None], a1[..., None] * a2[:, :, None]
        else:
            whole, eye = (a1 @ b1) * (a2 @ b2), torch.eye(least, device=a1.device).expand(count, -1, -1)
            A, B = (whole, eye) if rows == least else (eye, whole)
        return A.reshape(-1, inputs), placed(B.reshape(count * rows, -1), self.parts)


class LoHaMethod(Method[LoHa]):
    """Every target is wrapped."""

    def apply(self, model: VisionTransformer, config: LoHa, seed: int) -> None:
        def wrapper(site: Site, layer: Linear) -> LoHaLinear:
            device = layer.weight.device
            factors = [torch.from_numpy(factor).to(device) for factor in hadamard_factors(config, site, seed)]
            return LoHaLinear(layer, factors, config.scaling, site.parts)

        wrap(model, config.sites(model.architecture), wrapper)

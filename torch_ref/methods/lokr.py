"""LoKr: the update of a weight is the Kronecker product of two small matrices.

y = W x + b + s (W_1 kron W_2) x; W_1 ``(a, c)`` and W_2 ``(b, d)``, out = a b and in = c d; s = alpha / r. W_2, or
both, may be products of two factors of rank r. Of x as a matrix X ``(c, d)``, the product is W_1 X W_2^T ``(a, b)``.
Initially W_1 = 0, and of its two factors the first; the others are U(-1/sqrt(n), 1/sqrt(n)), n being their columns,
which is Kaiming uniform with a = sqrt 5.
Yeh et al. 2024 (arXiv 2309.14859), section 3; divided, scaled and initialised as Hugging Face PEFT does it.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mlx_peft.adaptation.products import kronecker_factors
from mlx_peft.config.methods import LoKr
from mlx_peft.vit.sites import Site
from torch_ref.methods.adapted import Adapted
from torch_ref.methods.joined import joined
from torch_ref.methods.method import Method
from torch_ref.methods.targets import wrap
from torch_ref.models.layers import Linear
from torch_ref.models.vit import VisionTransformer


class LoKrLinear(Adapted):
    """A frozen linear layer with a Kronecker product beside it, in float32 whatever the base's dtype.

    Args:
        base_layer: the layer; it is kept as ``base_layer``.
        factors: the initial tensors by name: ``lokr_w1``, or ``lokr_w1_a`` and ``lokr_w1_b``; likewise of W_2.
        scaling: s.
    """

    def __init__(self, base_layer: Linear, factors: Mapping[str, Tensor], scaling: float):
        super().__init__(base_layer)
        for name, factor in factors.items():
            setattr(self, name, nn.Parameter(factor))
        self.split = tuple(f"{name}_a" in factors for name in ("lokr_w1", "lokr_w2"))
        self.scaling = scaling

    def factors(self) -> tuple[Tensor, Tensor]:
        """s W_1 ``(a, c)`` and W_2 ``(b, d)``."""
        W1 = self.lokr_w1_a @ self.lokr_w1_b if self.split[0] else self.lokr_w1
        W2 = self.lokr_w2_a @ self.lokr_w2_b if self.split[1] else self.lokr_w2
        return self.scaling * W1, W2

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype == torch.float32:
            return self.base_layer(x) + self.beside(x)
        nothing, none = x.new_zeros(*x.shape[:-1], 0), x.new_zeros(self.base_layer.shape[0], 0)
        return joined(self.base_layer, x, lambda x: (nothing, self.beside(x)), none)

    def beside(self, x: Tensor) -> Tensor:
        """s (W_1 kron W_2) x ``(..., out)``, in the dtype of x."""
        W1, W2 = (factor.to(x.dtype) for factor in self.factors())
        X = x.reshape(*x.shape[:-1], W1.shape[1], W2.shape[1])
        return (W1 @ (X @ W2.T)).reshape(*x.shape[:-1], -1)

    @torch.no_grad()
    def merged(self) -> Linear:
        """A plain layer with W + s (W_1 kron W_2), computed in float32 and kept in the base's dtype."""
        return self.base_layer.with_weight(self.base_layer.dense() + torch.kron(*self.factors()))


class LoKrMethod(Method[LoKr]):
    """Every target is wrapped."""

    def apply(self, model: VisionTransformer, config: LoKr, seed: int) -> None:
        def wrapper(site: Site, layer: Linear) -> LoKrLinear:
            initial = kronecker_factors(config, site, seed)
            device = layer.weight.device
            factors = {name: torch.from_numpy(factor).to(device) for name, factor in initial.items()}
            return LoKrLinear(layer, factors, config.scaling)

        wrap(model, config.sites(model.architecture), wrapper)

"""BOFT: the inputs of a frozen layer are turned by a product of butterflies, and its outputs are scaled.

y = s * (W R^T x) + b; R = B_m ... B_2 B_1, each B_i = P_i diag(R_i1, R_i2, ...) P_i^T with a permutation P_i of half
blocks, and R_ij = (I - S) (I + S)^-1, S = (A_ij - A_ij^T) / 2, of a trained A_ij ``(b, b)``. With one factor P is the
identity. Initially A_ij = 0 and s = 1.
Liu et al. 2024 (arXiv 2311.06243), section 4; permuted as Hugging Face PEFT does it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mlx_peft.adaptation.rotations import butterflies
from mlx_peft.config.methods import BOFT
from mlx_peft.vit.sites import Site
from torch_ref.methods.adapted import Adapted
from torch_ref.methods.method import Method
from torch_ref.methods.rotations import cayley, turned
from torch_ref.methods.targets import wrap
from torch_ref.models.layers import Linear
from torch_ref.models.vit import VisionTransformer


class BOFTLinear(Adapted):
    """A frozen linear layer whose inputs are turned and outputs scaled, in float32 whatever the base's dtype.

    Trained are ``boft_R (m, in / b, b, b)``, which is A, and ``boft_s (out, 1)``.

    Args:
        base_layer: the layer; it is kept as ``base_layer``.
        size: b, of a block.
        factors: m.
    """

    def __init__(self, base_layer: Linear, size: int, factors: int = 1):
        super().__init__(base_layer)
        rows, inputs = base_layer.shape
        self.boft_R = nn.Parameter(torch.zeros(factors, inputs // size, size, size))
        self.boft_s = nn.Parameter(torch.ones(rows, 1))
        there, back = butterflies(inputs, size, factors)
        self.register_buffer("_there", torch.from_numpy(there), persistent=False)
        self.register_buffer("_back", torch.from_numpy(back), persistent=False)
        self.to(base_layer.weight.device)

    def rotations(self) -> Tensor:
        """R_ij ``(m, in / b, b, b)``."""
        A = self.boft_R
        return cayley((A - A.transpose(2, 3)) / 2)

    def forward(self, x: Tensor) -> Tensor:
        base, R = self.base_layer, self.rotations()
        for i in reversed(range(len(R))):
            x = turned(x[..., self._there[i]], R[i])[..., self._back[i]]
        y = (base.product(x) * self.boft_s[:, 0]).to(x.dtype)
        return y if base.bias is None else y + base.bias.to(x.dtype)

    @torch.no_grad()
    def merged(self) -> Linear:
        """A plain layer with s W R^T, computed in float32 and kept in the base's dtype."""
        W, R = self.base_layer.dense(), self.rotations()
        for i in range(len(R)):
            W = turned(W[:, self._there[i]], R[i].transpose(1, 2))[:, self._back[i]]
        return self.base_layer.with_weight(self.boft_s * W)


class BOFTMethod(Method[BOFT]):
    """Every target is wrapped; nothing is drawn."""

    def apply(self, model: VisionTransformer, config: BOFT, seed: int) -> None:
        def wrapper(site: Site, layer: Linear) -> BOFTLinear:
            return BOFTLinear(layer, config.size_of(site), config.factors)

        wrap(model, config.sites(model.architecture), wrapper)

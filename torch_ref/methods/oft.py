"""OFT: the inputs of a frozen layer are turned, block by block, by rotations that are trained.

y = W R^T x + b; R = diag(R_1, R_2, ...), each ``(b, b)`` and made of a skew-symmetric S_i: by Cayley's formula,
R_i = (I - S_i) (I + S_i)^-1, or by the first k terms of the Neumann series of the same with the other sign,
R_i = I + 2 (S_i + ... + S_i^(k - 2)) + S_i^(k - 1), as Hugging Face PEFT computes both. Trained is what is above the
diagonal of each S_i, which is 0 initially, so that R = I.
Qiu et al. 2023 (arXiv 2306.07280), section 3; on the inputs, and Neumann's series: Qiu et al. 2025 (arXiv 2506.19847),
section 3.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mlx_peft.adaptation.rotations import skew_places
from mlx_peft.config.methods import OFT
from mlx_peft.vit.sites import Site
from torch_ref.methods.adapted import Adapted
from torch_ref.methods.method import Method
from torch_ref.methods.rotations import cayley, neumann, skew, turned
from torch_ref.methods.targets import wrap
from torch_ref.models.layers import Linear
from torch_ref.models.vit import VisionTransformer


class OFTLinear(Adapted):
    """A frozen linear layer whose inputs are turned, in float32 whatever the base's dtype.

    What is trained, ``oft_R (in / b, b (b - 1) / 2)``, or ``(1, ...)`` where the blocks share it, is S.

    Args:
        base_layer: the layer; it is kept as ``base_layer``.
        size: b, of a block.
        share: whether one rotation turns all blocks.
        terms: k of Neumann's series; None: Cayley's formula.
    """

    def __init__(self, base_layer: Linear, size: int, share: bool = False, terms: int | None = None):
        super().__init__(base_layer)
        count = 1 if share else base_layer.shape[1] // size
        self.oft_R = nn.Parameter(torch.zeros(count, size * (size - 1) // 2))
        self.terms = terms
        index, sign = skew_places(size)
        self.register_buffer("_index", torch.from_numpy(index), persistent=False)
        self.register_buffer("_sign", torch.from_numpy(sign), persistent=False)
        self.to(base_layer.weight.device)

    def rotation(self) -> Tensor:
        """The blocks of R ``(in / b, b, b)``, or the one that all share."""
        S = skew(self.oft_R, self._index, self._sign)
        return cayley(S) if self.terms is None else neumann(S, self.terms)

    def forward(self, x: Tensor) -> Tensor:
        return self.base_layer(turned(x, self.rotation()))

    @torch.no_grad()
    def merged(self) -> Linear:
        """A plain layer with W R^T, computed in float32 and kept in the base's dtype."""
        return self.base_layer.with_weight(turned(self.base_layer.dense(), self.rotation().transpose(1, 2)))


class OFTMethod(Method[OFT]):
    """Every target is wrapped; nothing is drawn."""

    def apply(self, model: VisionTransformer, config: OFT, seed: int) -> None:
        def wrapper(site: Site, layer: Linear) -> OFTLinear:
            terms = config.terms if config.cayley == "neumann" else None
            return OFTLinear(layer, config.size_of(site), config.block_share, terms)

        wrap(model, config.sites(model.architecture), wrapper)

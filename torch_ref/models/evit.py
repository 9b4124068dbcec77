"""EViT: the patch tokens that the class token attends to least are fused into one.

a = mean over the heads of softmax(q_class k^T / sqrt(d)), of a block's attention. Of n patch tokens the
k = ceil(keep n) with the largest a stay, in their order; the others N become sum_{i in N} a_i x_i, which stands behind
them and is a patch token as any other from then on. Where no more than one would be fused, nothing is.
Liang et al. 2022 (arXiv 2202.07800), section 3, between attention and MLP of some blocks. The weights are not divided
by their sum.
"""

from __future__ import annotations

import torch
from torch import nn

from mlx_peft.config.tokens import EViT
from mlx_peft.vit.places import PATCH
from torch_ref.models.attention import Attended
from torch_ref.models.ranking import attentive
from torch_ref.models.reducer import Reducer
from torch_ref.models.tokens import Tokens, rows


class EViTReducer(Reducer):
    """Keeps a share of the patch tokens in its block, and fuses the others.

    Args:
        config: of which the share is.
    """

    def __init__(self, config: EViT):
        super().__init__()
        self.config = config

    def forward(self, tokens: Tokens, attended: Attended) -> Tokens:
        count = tokens.places.count(PATCH)
        stay = self.config.kept(count)
        if stay == count:
            return tokens
        kept, others, taken = attentive(attended, stay)
        weights = taken.gather(1, others)[:, None].to(tokens.x.dtype)
        fused = weights @ rows(tokens.patches, others)
        places = torch.cat([kept, others[:, :1]], dim=1)  # of the fused ones, that of the most attended
        indices = places if tokens.indices is None else tokens.indices.gather(1, places)
        return tokens.reduced(torch.cat([rows(tokens.patches, kept), fused], dim=1), indices, None)


def evit(config: EViT, depth: int, trained: nn.Module) -> dict[int, Reducer]:
    """A reducer in each of its blocks, by number."""
    return {block: EViTReducer(config) for block in config.blocks}

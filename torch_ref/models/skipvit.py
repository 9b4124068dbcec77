"""SkipViT: patch tokens that the class token attends to little skip the middle of the network.

a = mean over the heads of softmax(q_class k^T / sqrt(d)), in the attention of block ``from``. Of n patch tokens the
ceil(keep n) with the largest a go on, in their order. The others are left as they are behind that attention, and are
back in their places behind the attention of block ``to``: they are neither asked nor computed between the two, for as
long as ``to - from`` blocks.
Ataiefard et al. 2024 (arXiv 2401.15293), section 3.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from mlx_peft.config.tokens import SkipViT
from mlx_peft.vit.places import PATCH
from torch_ref.models.attention import Attended
from torch_ref.models.ranking import attentive
from torch_ref.models.reducer import Reducer
from torch_ref.models.tokens import Tokens, rows


class Leaving(Reducer):
    """Puts a share of the patch tokens aside.

    Args:
        config: of which the share is.
    """

    def __init__(self, config: SkipViT):
        super().__init__()
        self.config = config

    def forward(self, tokens: Tokens, attended: Attended) -> Tokens:
        count = tokens.places.count(PATCH)
        stay = self.config.kept(count)
        if stay == count:
            return tokens
        kept, others, _ = attentive(attended, stay)
        return replace(tokens.gathered(kept), aside=rows(tokens.patches, others.sort(dim=1).values))


class Returning(Reducer):
    """Puts the tokens that went round back in their places."""

    def forward(self, tokens: Tokens, attended: Attended) -> Tokens:
        if tokens.aside is None or tokens.indices is None:
            return tokens
        stayed = tokens.places.count(PATCH)
        every = torch.cat([tokens.patches, tokens.aside], dim=1)
        here = tokens.indices[:, None] == torch.arange(every.shape[1], device=every.device)[:, None]
        gone = ~here.any(dim=2)
        where = torch.where(gone, stayed - 1 + gone.cumsum(dim=1), here.int().argmax(dim=2))
        return replace(tokens.reduced(rows(every, where), None, None), aside=None)


def skipvit(config: SkipViT, depth: int, trained: nn.Module) -> dict[int, Reducer]:
    """What leads tokens out in one block and back in another, by number."""
    return {config.start: Leaving(config), config.to: Returning()}

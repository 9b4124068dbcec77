"""ToMe: in every block, pairs of patch tokens that are alike become one.

The patch tokens are parted in turn, the second, fourth, ... into A, the others into B. Each of A has one edge, to the
token of B whose key is most like its own: cos(k_a, k_b), k the mean of the heads' keys in this block's attention. The r
edges that are most alike are kept, and what they join becomes one token, x = sum_i s_i x_i / sum_i s_i, whose size is
sum_i s_i, s_i being the number of patches that a token stands for. Attention then counts a token as often:
softmax(q k^T / sqrt(d) + log s), see ``attention.size_bias``. At most half of the tokens are merged in a block.
Bolya et al. 2023 (arXiv 2210.09461), section 3 and appendix D.

A and B are the paper's where a class token stands before the patches. Class, distillation, register and prompt tokens
are in neither. Cosines are rounded, so that what is equally alike is told apart by its place, in both backends alike.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlx_peft.config.tokens import ToMe
from mlx_peft.vit.places import PATCH
from torch_ref.models.attention import Attended
from torch_ref.models.ranking import ranked, rounded
from torch_ref.models.reducer import Reducer
from torch_ref.models.tokens import Tokens, rows

EPS = 1e-12
"""Nothing is divided by less."""


class ToMeReducer(Reducer):
    """Merges pairs of patch tokens in its block.

    Args:
        config: which says how many.
    """

    def __init__(self, config: ToMe):
        super().__init__()
        self.config = config

    def forward(self, tokens: Tokens, attended: Attended) -> Tokens:
        count = tokens.places.count(PATCH)
        r = min(self.config.r, count // 2)
        if not r:
            return tokens
        left, merged, into = matching(attended.k[:, :, attended.asked.span(PATCH)], r)
        sizes = left.new_ones(len(left), count, dtype=torch.float32) if tokens.sizes is None else tokens.sizes
        fewer, start = replace(tokens, sizes=sizes).gathered(left), tokens.places.span(PATCH).start
        # Of B all are left, behind those of A.
        row = torch.arange(len(fewer.places), device=into.device)[:, None]
        added = ((start + count // 2 - r + into // 2)[:, None] == row) * sizes.gather(1, merged)[:, None]
        total = fewer.weights() + added.sum(dim=2)
        gone, there = rows(tokens.x, start + torch.cat([merged, into], dim=1)).split(r, dim=1)
        shares = (added / total[..., None]).to(gone.dtype)
        x = fewer.x.baddbmm_(shares, gone - there)  # in place: it is new, and nobody else has it
        return replace(fewer, x=x, sizes=total[:, fewer.places.span(PATCH)])


def tome(config: ToMe, depth: int, trained: nn.Module) -> dict[int, Reducer]:
    """A reducer in every block, by number."""
    return {block: ToMeReducer(config) for block in range(depth)}


@torch.no_grad()
def matching(k: Tensor, r: int) -> tuple[Tensor, Tensor, Tensor]:
    """The r pairs most alike, by the keys ``(batch, heads, patches, d)``; without a gradient.

    Returns the places of those that are left, first A's and then B's, ``(batch, patches - r)``; of those of A that are
    merged, the most alike first, ``(batch, r)``; and of those of B that each is merged into, ``(batch, r)``.
    """
    metric = F.normalize(k.float().mean(dim=1), dim=-1, eps=EPS)
    scores = rounded(metric[:, 1::2] @ metric[:, ::2].transpose(1, 2))
    best, nearest = scores.max(dim=2)  # of equal ones the first
    order = ranked(best)
    b = torch.arange(0, k.shape[2], 2, device=k.device).expand(len(k), -1)
    left = torch.cat([2 * order[:, r:].sort(dim=1).values + 1, b], dim=1)
    return left, 2 * order[:, :r] + 1, 2 * nearest.gather(1, order[:, :r])

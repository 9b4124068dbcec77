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
from functools import reduce
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlx_peft.config.tokens import ToMe
from mlx_peft.vit.places import PATCH
from torch_ref.models.attention import Attended
from torch_ref.models.ranking import GRAIN
from torch_ref.models.reducer import Reducer
from torch_ref.models.tokens import Tokens

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
        left, gone, into = matching(attended.k[:, :, attended.asked.span(PATCH)], r)
        if tokens.sizes is None:
            tokens = replace(tokens, sizes=left.new_ones(len(left), count, dtype=torch.float32))
        start = tokens.places.span(PATCH).start
        x, weights = merged(tokens.x, tokens.weights(), tokens.among_all(left), start + gone, start + into)
        fewer = tokens.gathered(left, x)
        return replace(fewer, sizes=weights[:, fewer.places.span(PATCH)])


def tome(config: ToMe, depth: int, trained: nn.Module) -> dict[int, Reducer]:
    """A reducer in every block, by number."""
    return {block: ToMeReducer(config) for block in range(depth)}


@torch.no_grad()
def matching(k: Tensor, r: int) -> tuple[Tensor, Tensor, Tensor]:
    """The r pairs most alike, by the keys ``(batch, heads, patches, d)``; without a gradient.

    Returns the places of those that are left, first A's and then B's, ``(batch, patches - r)``; of those of A that are
    merged, the most alike first, ``(batch, r)``; and where among the first stand those of B that each is merged into,
    ``(batch, r)``.
    """
    metric = reduce(torch.add, k.float().unbind(1))  # whose direction is the mean's; torch's own sum takes longer here
    length = torch.linalg.vector_norm(metric, dim=-1, keepdim=True).clamp_min_(EPS)
    metric = metric / (length * GRAIN**0.5)  # a product of two is a cosine in multiples of GRAIN
    best, nearest = (metric[:, 1::2] @ metric[:, ::2].transpose(1, 2)).round_().max(dim=2)  # of equal ones the first
    order = best.argsort(dim=1, descending=True, stable=True)
    a, b = 2 * order + 1, torch.arange(0, k.shape[2], 2, device=k.device).expand(len(k), -1)
    left = torch.cat([a[:, r:].sort(dim=1).values, b], dim=1)
    return left, a[:, :r], a.shape[1] - r + nearest.gather(1, order[:, :r])


def merged(x: Tensor, weights: Tensor, left: Tensor, gone: Tensor, into: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens ``(batch, tokens, dim)`` with some of them in others, y = sum_i s_i x_i / sum_i s_i, and the new weights.

    Args:
        weights: s, float32 ``(batch, tokens)``.
        left: which are left, in order, ``(batch, n)``.
        gone, into: which are not, and where among those that are left what takes each stands, ``(batch, r)``.
    """
    total = weights.gather(1, left).scatter_add_(1, into, weights.gather(1, gone))
    there = torch.arange(left.shape[1], device=left.device).expand_as(left)
    goes = left.new_empty(weights.shape).scatter_(1, left, there).scatter_(1, gone, into)
    shares = (weights / total.gather(1, goes)).to(x.dtype)
    return _Merged.apply(x, goes, shares, *_beside_one_another(left, gone, into)), total


def _beside_one_another(left: Tensor, gone: Tensor, into: Tensor) -> tuple[Tensor, Tensor]:
    """All tokens, those beside one another that become one, ``(batch, tokens)``; and where each of these begins."""
    into, order = into.sort(dim=1, stable=True)
    there = torch.arange(left.shape[1], device=left.device)
    begins = there + torch.searchsorted(into, there.repeat(len(left), 1))
    which = left.new_empty(len(left), left.shape[1] + gone.shape[1]).scatter_(1, begins, left)
    behind = into + torch.arange(1, gone.shape[1] + 1, device=left.device)
    return which.scatter_(1, behind, gone.gather(1, order)), begins


class _Merged(torch.autograd.Function):
    """Sums of rows, and each row's gradient: that of the one sum in which it is, times its share there."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, goes: Tensor, shares: Tensor, which: Tensor, begins: Tensor) -> Tensor:
        ctx.save_for_backward(goes, shares)
        return _summed(x, which, shares.gather(1, which), begins)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        goes, shares = ctx.saved_tensors
        each = torch.arange(goes.shape[1], device=goes.device).expand_as(goes)
        return _summed(cotangent, goes, shares, each), *[None] * 4


def _summed(x: Tensor, which: Tensor, shares: Tensor, begins: Tensor) -> Tensor:
    """Rows ``which (batch, m)`` of each image's ``x (batch, rows, dim)``, each times its share ``(batch, m)``, added up
    from one of ``begins (batch, n)`` to the next: ``(batch, n, dim)``, in one pass over x."""
    image = torch.arange(len(x), device=x.device)[:, None]
    table, rows = x.detach().reshape(-1, x.shape[2]), (which + x.shape[1] * image).flatten()
    begins = (begins + which.shape[1] * image).flatten()
    found = F.embedding_bag(rows, table, begins, mode="sum", per_sample_weights=shares.flatten())
    return found.view(len(x), -1, x.shape[2])

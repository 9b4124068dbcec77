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

import mlx.core as mx
import mlx.nn as nn

from mlx_peft.backend.models.attention import Attended
from mlx_peft.backend.models.ranking import ranked, rounded
from mlx_peft.backend.models.reducer import Reducer
from mlx_peft.backend.models.tokens import Tokens, rows
from mlx_peft.config.tokens import ToMe
from mlx_peft.vit.places import PATCH

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

    def __call__(self, tokens: Tokens, attended: Attended) -> Tokens:
        count = tokens.places.count(PATCH)
        r = min(self.config.r, count // 2)
        if not r:
            return tokens
        left, gone, into = matching(attended.k[:, :, attended.asked.span(PATCH)], r)
        if tokens.sizes is None:
            tokens = replace(tokens, sizes=mx.ones((len(left), count)))
        start = tokens.places.span(PATCH).start
        x, weights = merged(tokens.x, tokens.weights(), tokens.among_all(left), start + gone, start + into)
        fewer = tokens.gathered(left, x)
        return replace(fewer, sizes=weights[:, fewer.places.span(PATCH)])


def tome(config: ToMe, depth: int, trained: nn.Module) -> dict[int, Reducer]:
    """A reducer in every block, by number."""
    return {block: ToMeReducer(config) for block in range(depth)}


def matching(k: mx.array, r: int) -> tuple[mx.array, mx.array, mx.array]:
    """The r pairs most alike, by the keys ``(batch, heads, patches, d)``; without a gradient.

    Returns the places of those that are left, first A's and then B's, ``(batch, patches - r)``; of those of A that are
    merged, the most alike first, ``(batch, r)``; and where among the first stand those of B that each is merged into,
    ``(batch, r)``.
    """
    metric = mx.stop_gradient(k).astype(mx.float32).mean(axis=1)
    metric = metric / mx.maximum(mx.linalg.norm(metric, axis=-1, keepdims=True), EPS)
    scores = rounded(metric[:, 1::2] @ metric[:, ::2].swapaxes(1, 2))
    order = ranked(scores.max(axis=2)).astype(mx.int32)
    nearest = scores.argmax(axis=2).astype(mx.int32)
    a, b = 2 * order + 1, mx.arange(0, k.shape[2], 2)
    left = mx.concatenate([mx.sort(a[:, r:], axis=1), mx.broadcast_to(b, (len(k), len(b)))], axis=1)
    return left, a[:, :r], a.shape[1] - r + mx.take_along_axis(nearest, order[:, :r], axis=1)


def merged(x: mx.array, weights: mx.array, left: mx.array, gone: mx.array, into: mx.array) -> tuple[mx.array, mx.array]:
    """Tokens ``(batch, tokens, dim)`` with some of them in others, y = sum_i s_i x_i / sum_i s_i, and the new weights.

    Args:
        weights: s, float32 ``(batch, tokens)``.
        left: which are left, in order, ``(batch, n)``.
        gone, into: which are not, and where among those that are left what takes each stands, ``(batch, r)``.
    """
    row = mx.arange(left.shape[1])[:, None]
    added = (into[:, None] == row) * mx.take_along_axis(weights, gone, axis=1)[:, None]
    total = mx.take_along_axis(weights, left, axis=1) + added.sum(axis=2)

    # A token goes to one place, with one share: its gradient is a row of the gradient that comes back, times that. Of
    # gathering and adding up, MLX itself would make two arrays of zeros, and add rows to them.
    @mx.custom_function
    def merge(x: mx.array) -> mx.array:
        y = rows(x, left)
        return mx.addmm(y, (added / total[..., None]).astype(y.dtype), rows(x, gone) - rows(y, into))

    @merge.vjp
    def merge_vjp(x, cotangent, _):  # type: ignore[no-untyped-def]
        back = mx.argsort(mx.concatenate([left, gone], axis=1), axis=1)
        there = mx.broadcast_to(mx.arange(left.shape[1]), left.shape)
        goes = mx.take_along_axis(mx.concatenate([there, into], axis=1), back, axis=1)
        shares = weights / mx.take_along_axis(total, goes, axis=1)
        return rows(cotangent, goes) * shares[..., None].astype(cotangent.dtype)

    return merge(x), total

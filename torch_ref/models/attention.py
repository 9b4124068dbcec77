"""Multi-head self-attention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlx_peft.vit.architecture import Architecture
from mlx_peft.vit.places import Kinds, Places
from torch_ref.models.layers import Linear, norm, spread
from torch_ref.models.positions import POSITIONS, Positions
from torch_ref.models.tokens import Tokens, taken


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(d) + bias) v for ``(batch, heads, tokens, d)``, heads joined: ``(batch, tokens, heads d)``.

    The bias, where there is one, is broadcast over ``(batch, heads, tokens, tokens)``.
    """
    mask = None if bias is None else bias.to(q.dtype)
    x = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return x.transpose(1, 2).reshape(x.shape[0], x.shape[2], -1)


def probabilities(q: Tensor, k: Tensor, bias: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(d) + bias), ``(batch, heads, queries, tokens)``."""
    scores = (q @ k.transpose(-1, -2)) * q.shape[-1] ** -0.5
    if bias is not None:
        scores = scores + bias.to(scores.dtype)
    return torch.softmax(scores, dim=-1)


def size_bias(tokens: Tokens) -> Tensor | None:
    """log(size) of each token, ``(batch, 1, 1, tokens)``: one that stands for n is asked as n alike; None: all for one.

    Bolya et al. 2023 (arXiv 2210.09461), section 3, equation 1: proportional attention.
    """
    weights = tokens.weights()
    return None if weights is None else weights.log()[:, None, None]


class Attended(NamedTuple):
    """What a block's attention compared, for the reducer behind it: nothing is computed that is not asked for.

    Attributes:
        q: ``(batch, heads, queries, d)``, normalised and turned.
        k: ``(batch, heads, tokens, d)``, likewise.
        bias: what was added to the scores; None: nothing.
        asking, asked: what stands where among the queries, and among the keys: prompts that leave are asked alone.
    """

    q: Tensor
    k: Tensor
    bias: Tensor | None
    asking: Places
    asked: Places

    def probabilities(self, rows: slice = slice(None)) -> Tensor:
        """Of those that asked, or of some: how much of each token they took, ``(batch, heads, rows, tokens)``."""
        bias = self.bias
        if bias is not None and bias.shape[2] > 1:
            bias = bias[:, :, rows]
        return probabilities(self.q[:, :, rows], self.k, bias)


class Attention(nn.Module):
    """proj(norm(softmax(q k^T / sqrt(d) + b) v)), q, k and v from one product; q and k normalised per head where asked.

    The positions turn q and k and give b, to which the logarithms of the tokens' sizes are added, where they have any.
    With ``queries``, only tokens of these kinds ask, all are asked, and only theirs come out.

    Args:
        architecture: what the model is made of.
        number: of the block.
    """

    def __init__(self, architecture: Architecture, number: int = 0):
        super().__init__()
        dim = architecture.embed_dim
        self.number = number
        self.num_heads = architecture.num_heads
        self.head_dim = architecture.head_dim
        self.project(architecture)
        POSITIONS[architecture.positions].equip(self, architecture)
        self.q_norm = norm(architecture, self.head_dim, architecture.qk_norm)
        self.k_norm = norm(architecture, self.head_dim, architecture.qk_norm)
        self.attend = attend
        self.norm = norm(architecture, dim, architecture.scale_attn_norm)
        self.proj = Linear(dim, dim, architecture.proj_bias)

    def forward(self, tokens: Tokens, positions: Positions, queries: Kinds | None = None) -> tuple[Tensor, Attended]:
        q, k, v = (self.per_head(part) for part in self.projected(tokens.x))
        asking = tokens.only(queries)
        q = positions.turned(self, self.q_norm(taken(q, tokens.places, queries, axis=2)), asking)
        k = positions.turned(self, self.k_norm(k), tokens)
        bias, sizes = positions.bias(self, tokens, asking), size_bias(tokens)
        if sizes is not None:
            bias = sizes if bias is None else bias + sizes
        x = self.attend(q, k, v, bias)
        return self.proj(self.norm(x)), Attended(q, k, bias, asking.places, tokens.places)

    def project(self, architecture: Architecture) -> None:
        """Makes the layers that give q, k and v."""
        self.qkv = Linear(architecture.embed_dim, 3 * architecture.embed_dim, architecture.qkv_bias)

    def projected(self, x: Tensor) -> Sequence[Tensor]:
        """q, k and v, each ``(batch, tokens, dim)``."""
        return self.qkv(x).chunk(3, dim=-1)

    def per_head(self, x: Tensor) -> Tensor:
        """``(batch, tokens, dim)`` as ``(batch, heads, tokens, d)``."""
        return x.reshape(*x.shape[:2], self.num_heads, self.head_dim).transpose(1, 2)


class BiasesApart(Attention):
    """The same with q_bias and v_bias beside a qkv that has none; k has no bias. timm's ``EvaAttention``."""

    def project(self, architecture: Architecture) -> None:
        self.qkv = Linear(architecture.embed_dim, 3 * architecture.embed_dim, bias=False)
        self.biased = architecture.qkv_bias
        if self.biased:
            self.q_bias = nn.Parameter(torch.zeros(architecture.embed_dim))
            self.v_bias = nn.Parameter(torch.zeros(architecture.embed_dim))

    def projected(self, x: Tensor) -> Sequence[Tensor]:
        q, k, v = super().projected(x)
        if not self.biased:
            return q, k, v
        return q + spread(self.q_bias, q.shape, q.dtype), k, v + spread(self.v_bias, v.shape, v.dtype)


class Split(Attention):
    """The same with q, k and v from three layers; k's has no bias."""

    def project(self, architecture: Architecture) -> None:
        dim = architecture.embed_dim
        self.q_proj = Linear(dim, dim, architecture.qkv_bias)
        self.k_proj = Linear(dim, dim, bias=False)
        self.v_proj = Linear(dim, dim, architecture.qkv_bias)

    def projected(self, x: Tensor) -> Sequence[Tensor]:
        return self.q_proj(x), self.k_proj(x), self.v_proj(x)


ATTENTIONS = {"fused": Attention, "biases_apart": BiasesApart, "split": Split}
"""The attention of a block, by how its q, k and v are stored."""

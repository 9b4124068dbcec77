"""Multi-head self-attention."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from mlx_peft.vit.architecture import Architecture
from torch_ref.models.layers import Linear, norm


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)) v for ``(batch, heads, tokens, d)``, heads joined: ``(batch, tokens, heads d)``."""
    x = F.scaled_dot_product_attention(q, k, v)
    return x.transpose(1, 2).reshape(x.shape[0], x.shape[2], -1)


class Attention(nn.Module):
    """proj(norm(softmax(q k^T / sqrt(d)) v)), q, k and v from one product; q and k normalised per head where asked.

    With ``queries``, only so many leading tokens ask, all are asked, and only theirs come out.
    """

    def __init__(self, architecture: Architecture):
        super().__init__()
        dim = architecture.embed_dim
        self.num_heads = architecture.num_heads
        self.head_dim = dim // architecture.num_heads
        self.qkv = Linear(dim, 3 * dim, architecture.qkv_bias)
        self.q_norm = norm(architecture, self.head_dim, architecture.qk_norm)
        self.k_norm = norm(architecture, self.head_dim, architecture.qk_norm)
        self.attend = attend
        self.norm = norm(architecture, dim, architecture.scale_attn_norm)
        self.proj = Linear(dim, dim, architecture.proj_bias)

    def forward(self, x: Tensor, queries: int | None = None) -> Tensor:
        batch, tokens, _ = x.shape
        heads = (batch, tokens, self.num_heads, self.head_dim)
        q, k, v = (part.reshape(heads).transpose(1, 2) for part in self.qkv(x).chunk(3, dim=-1))
        x = self.attend(self.q_norm(q[:, :, :queries]), self.k_norm(k), v)
        return self.proj(self.norm(x))

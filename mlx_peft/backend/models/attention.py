"""Multi-head self-attention."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from mlx_peft.backend.models.layers import Linear, norm
from mlx_peft.vit.architecture import Architecture


def attend(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
    """softmax(q k^T / sqrt(d)) v for ``(batch, heads, tokens, d)``, heads joined: ``(batch, tokens, heads d)``."""
    x = mx.fast.scaled_dot_product_attention(q, k, v, scale=q.shape[-1] ** -0.5)
    return x.transpose(0, 2, 1, 3).reshape(x.shape[0], x.shape[2], -1)


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

    def __call__(self, x: mx.array, queries: int | None = None) -> mx.array:
        batch, tokens, _ = x.shape
        heads = (batch, tokens, self.num_heads, self.head_dim)
        q, k, v = (part.reshape(heads).transpose(0, 2, 1, 3) for part in mx.split(self.qkv(x), 3, axis=-1))
        x = self.attend(self.q_norm(q[:, :, :queries]), self.k_norm(k), v)
        return self.proj(self.norm(x))

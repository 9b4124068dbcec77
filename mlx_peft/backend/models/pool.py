"""The attention pooling of SigLIP and of the Perception Encoder."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from mlx_peft.backend.models.attention import attend, size_bias
from mlx_peft.backend.models.layers import Linear, norm, spread
from mlx_peft.backend.models.mlp import Mlp
from mlx_peft.backend.models.tokens import Tokens
from mlx_peft.vit.architecture import Architecture


class AttentionPool(nn.Module):
    """One learnt query attends to all tokens, then a residual MLP: ``(batch, tokens, dim)`` to ``(batch, dim)``.

    Zhai et al. 2022 (arXiv 2106.04560), the "MAP head"; timm's ``AttentionPoolLatent``.
    """

    def __init__(self, architecture: Architecture):
        super().__init__()
        dim = architecture.embed_dim
        self.num_heads = architecture.pool_heads
        self.head_dim = dim // self.num_heads
        self.latent = mx.zeros((1, 1, dim))
        self.q = Linear(dim, dim)
        self.kv = Linear(dim, 2 * dim)
        self.attend = attend
        self.proj = Linear(dim, dim)
        self.norm = norm(architecture, dim)
        ratio = architecture.attn_pool_mlp_ratio or architecture.mlp_ratio
        plain = {"proj_bias": True, "scale_mlp_norm": False, "mlp_ratio": ratio}
        self.mlp = Mlp(architecture.model_copy(update=plain))

    def __call__(self, tokens: Tokens) -> mx.array:
        batch, length, _ = tokens.x.shape
        q = self.q(self.latent.astype(mx.float32))  # one row for all images, or one for each
        q = q.reshape(len(q), 1, self.num_heads, self.head_dim).transpose(0, 2, 1, 3)
        kv = self.kv(tokens.x).reshape(batch, length, 2, self.num_heads, self.head_dim).transpose(2, 0, 3, 1, 4)
        q = spread(q, (batch, *q.shape[1:]), tokens.x.dtype)
        x = self.proj(self.attend(q, kv[0], kv[1], size_bias(tokens)))
        return (x + self.mlp(self.norm(x)))[:, 0]

"""The attention pooling of SigLIP and of the Perception Encoder."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mlx_peft.vit.architecture import Architecture
from torch_ref.models.attention import attend, size_bias
from torch_ref.models.layers import Linear, norm, spread
from torch_ref.models.mlp import Mlp
from torch_ref.models.tokens import Tokens


class AttentionPool(nn.Module):
    """One learnt query attends to all tokens, then a residual MLP: ``(batch, tokens, dim)`` to ``(batch, dim)``.

    Zhai et al. 2022 (arXiv 2106.04560), the "MAP head"; timm's ``AttentionPoolLatent``.
    """

    def __init__(self, architecture: Architecture):
        super().__init__()
        dim = architecture.embed_dim
        self.num_heads = architecture.pool_heads
        self.head_dim = dim // self.num_heads
        self.latent = nn.Parameter(torch.zeros(1, 1, dim))
        self.q = Linear(dim, dim)
        self.kv = Linear(dim, 2 * dim)
        self.attend = attend
        self.proj = Linear(dim, dim)
        self.norm = norm(architecture, dim)
        ratio = architecture.attn_pool_mlp_ratio or architecture.mlp_ratio
        plain = {"proj_bias": True, "scale_mlp_norm": False, "mlp_ratio": ratio}
        self.mlp = Mlp(architecture.model_copy(update=plain))

    def forward(self, tokens: Tokens) -> Tensor:
        batch, length, _ = tokens.x.shape
        q = self.q(self.latent.float())  # one row for all images, or one for each
        q = q.reshape(len(q), 1, self.num_heads, self.head_dim).transpose(1, 2)
        k, v = self.kv(tokens.x).reshape(batch, length, 2, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q = spread(q, (batch, *q.shape[1:]), tokens.x.dtype)
        x = self.proj(self.attend(q, k, v, size_bias(tokens)))
        return (x + self.mlp(self.norm(x)))[:, 0]

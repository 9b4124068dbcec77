"""timm's ``VisionTransformer`` and distilled DeiT, with timm's parameter names."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mlx_peft.config.methods import MethodConfig
from mlx_peft.config.quantization import Quantization
from mlx_peft.vit.architecture import Architecture
from torch_ref.models.attention import Attention
from torch_ref.models.embed import PatchEmbed
from torch_ref.models.layers import Linear, layer_scale, norm, spread
from torch_ref.models.mlp import MLPS
from torch_ref.models.pool import AttentionPool
from torch_ref.models.stochastic import Dropout, DropPath


class Block(nn.Module):
    """x + attn(norm1(x)), then x + mlp(norm2(x)); layer scale and drop path are identities unless asked for.

    With ``queries``, only so many leading tokens come out: what the others would be is not computed.
    """

    def __init__(self, architecture: Architecture, drop_path: float = 0.0):
        super().__init__()
        dim = architecture.embed_dim
        self.norm1 = norm(architecture, dim)
        self.attn = Attention(architecture)
        self.ls1 = layer_scale(architecture)
        self.drop_path1 = DropPath(drop_path)
        self.norm2 = norm(architecture, dim)
        self.mlp = MLPS[architecture.mlp_layer](architecture)
        self.ls2 = layer_scale(architecture)
        self.drop_path2 = DropPath(drop_path)

    def forward(self, x: Tensor, queries: int | None = None) -> Tensor:
        x = self.attend(x, queries)
        return x + self.feed(self.norm2(x))

    def attend(self, x: Tensor, queries: int | None = None) -> Tensor:
        """The first half: x + attn(norm1(x))."""
        return x[:, :queries] + self.drop_path1(self.ls1(self.attn(self.norm1(x), queries)))

    def feed(self, x: Tensor) -> Tensor:
        """The second half's branch, of a normalised x: mlp(x)."""
        return self.drop_path2(self.ls2(self.mlp(x)))


class VisionTransformer(nn.Module):
    """Dosovitskiy et al. 2021 (arXiv 2010.11929); distilled: Touvron et al. 2021 (arXiv 2012.12877).

    Normalised images ``(batch, size, size, 3)`` to logits ``(batch, classes)``. With a distillation token the logits
    are the mean of the two heads', in training too, as timm does outside of distillation.

    Args:
        architecture: what the model is made of.
        num_classes: width of the head.
        drop_path: stochastic depth of the last block, rising linearly from 0 at the first.
        head_dropout: dropout on the features before the head.
    """

    def __init__(self, architecture: Architecture, num_classes: int, drop_path: float = 0.0, head_dropout: float = 0.0):
        super().__init__()
        dim, depth = architecture.embed_dim, architecture.depth
        self.architecture = architecture
        self.checkpointing = False
        self.quantization: Quantization | None = None  # of the blocks' linear layers
        self.method: MethodConfig | None = None  # that was put into it
        self.shared = nn.Module()  # what a method gives to several blocks at once
        self.patch_embed = PatchEmbed(architecture)
        if architecture.class_token:
            self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        if architecture.distilled:
            self.dist_token = nn.Parameter(torch.zeros(1, 1, dim))
        if architecture.reg_tokens:
            self.reg_token = nn.Parameter(torch.zeros(1, architecture.reg_tokens, dim))
        if architecture.pos_embed:
            self.pos_embed = nn.Parameter(torch.zeros(1, architecture.position_tokens, dim))
        self.norm_pre = norm(architecture, dim, architecture.pre_norm)
        self.blocks = nn.ModuleList(Block(architecture, drop_path * i / max(depth - 1, 1)) for i in range(depth))
        after = architecture.norm_after_pool
        self.norm = norm(architecture, dim, architecture.final_norm and not after)
        if architecture.global_pool == "map":
            self.attn_pool = AttentionPool(architecture)
        self.fc_norm = norm(architecture, dim, architecture.final_norm and after)
        self.head_drop = Dropout(head_dropout)
        self.head = Linear(architecture.feature_dim, num_classes)
        if architecture.distilled:
            self.head_dist = Linear(dim, num_classes)

    def embed(self, x: Tensor) -> Tensor:
        """Images to the blocks' input ``(batch, tokens, dim)``."""
        x = self.patch_embed(x)
        before = [getattr(self, name) for name in ("cls_token", "dist_token", "reg_token") if hasattr(self, name)]
        tokens = [spread(t, (x.shape[0], *t.shape[1:]), x.dtype) for t in before]
        if self.architecture.pos_embed and self.architecture.no_embed_class:
            x = x + self.pos_embed.to(x.dtype)
        x = torch.cat([*tokens, x], dim=1)
        if self.architecture.pos_embed and not self.architecture.no_embed_class:
            x = x + self.pos_embed.to(x.dtype)
        return self.norm_pre(x)

    def between(self, x: Tensor, start: int, stop: int) -> Tensor:
        """What enters block ``start`` to what enters block ``stop``; past the last, only the tokens that are read."""
        read = [None] * (len(self.blocks) - 1) + [self.architecture.tokens_read]
        for index, (block, queries) in enumerate(zip(self.blocks, read, strict=True)):
            if start <= index < stop:
                x = (recomputed(block) if self.checkpointing and self.training else block)(x, queries)
        return x

    def pool(self, x: Tensor) -> Tensor:
        """Tokens to one feature vector an image."""
        token = x[:, 0]
        if self.architecture.global_pool == "token":
            return token
        if not self.architecture.pool_include_prefix:
            x = x[:, self.architecture.num_prefix_tokens :]
        if self.architecture.global_pool == "map":
            return self.attn_pool(x)
        mean = x.mean(dim=1)
        return mean if self.architecture.global_pool == "avg" else torch.cat([token, mean], dim=1)

    def vectors(self, x: Tensor) -> list[Tensor]:
        """The last block's tokens to what each head reads, ``(batch, dim)``: one vector, two with distillation."""
        x = self.norm(x)
        return [self.fc_norm(self.pool(x)), *([x[:, 1]] if self.architecture.distilled else [])]

    def prefix(self, x: Tensor, end: int) -> Tensor:
        """Images to what enters block ``end``; past the depth, to the heads' vectors ``(batch, heads, dim)``."""
        x = self.between(self.embed(x), 0, end)
        return torch.stack(self.vectors(x), dim=1) if end > len(self.blocks) else x

    def suffix(self, x: Tensor, start: int) -> Tensor:
        """The logits of what ``prefix`` gave for ``end = start``; for 0, of what ``embed`` gave."""
        x = self.between(x, start, len(self.blocks))
        vectors = self.vectors(x) if start <= len(self.blocks) else [x[:, head] for head in range(x.shape[1])]
        logits = self.head(self.head_drop(vectors[0]))
        if self.architecture.distilled:
            logits = (logits + self.head_dist(self.head_drop(vectors[1]))) / 2
        return logits

    def forward(self, x: Tensor) -> Tensor:
        return self.suffix(self.embed(x), 0)


def recomputed(block: nn.Module) -> Callable[[Tensor, int | None], Tensor]:
    """The block under gradient checkpointing: its activations are computed again in the backward pass.

    torch restores its generators for the second pass, so that it drops what the first one dropped.
    """
    return partial(checkpoint, block, use_reentrant=False)

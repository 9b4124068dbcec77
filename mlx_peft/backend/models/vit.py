"""timm's ``VisionTransformer`` and distilled DeiT, with timm's parameter names."""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx
import mlx.nn as nn

from mlx_peft.backend import forks
from mlx_peft.backend.models.attention import Attention
from mlx_peft.backend.models.embed import PatchEmbed
from mlx_peft.backend.models.layers import Linear, layer_scale, norm, spread
from mlx_peft.backend.models.mlp import MLPS
from mlx_peft.backend.models.pool import AttentionPool
from mlx_peft.backend.models.stochastic import Dropout, DropPath, current_key, next_key, randomness
from mlx_peft.config.methods import MethodConfig
from mlx_peft.config.quantization import Quantization
from mlx_peft.vit.architecture import Architecture


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

    def __call__(self, x: mx.array, queries: int | None = None) -> mx.array:
        x = self.attend(x, queries)
        return x + self.feed(self.norm2(x))

    def attend(self, x: mx.array, queries: int | None = None) -> mx.array:
        """The first half: x + attn(norm1(x))."""
        return x[:, :queries] + self.drop_path1(self.ls1(self.attn(self.norm1(x), queries)))

    def feed(self, x: mx.array) -> mx.array:
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
        forks.check()
        super().__init__()
        dim, depth = architecture.embed_dim, architecture.depth
        self.architecture = architecture
        self.checkpointing = False
        self.quantization: Quantization | None = None  # of the blocks' linear layers
        self.method: MethodConfig | None = None  # that was put into it
        self.shared = nn.Module()  # what a method gives to several blocks at once
        self.patch_embed = PatchEmbed(architecture)
        if architecture.class_token:
            self.cls_token = mx.zeros((1, 1, dim))
        if architecture.distilled:
            self.dist_token = mx.zeros((1, 1, dim))
        if architecture.reg_tokens:
            self.reg_token = mx.zeros((1, architecture.reg_tokens, dim))
        if architecture.pos_embed:
            self.pos_embed = mx.zeros((1, architecture.position_tokens, dim))
        self.norm_pre = norm(architecture, dim, architecture.pre_norm)
        self.blocks = [Block(architecture, drop_path * i / max(depth - 1, 1)) for i in range(depth)]
        after = architecture.norm_after_pool
        self.norm = norm(architecture, dim, architecture.final_norm and not after)
        if architecture.global_pool == "map":
            self.attn_pool = AttentionPool(architecture)
        self.fc_norm = norm(architecture, dim, architecture.final_norm and after)
        self.head_drop = Dropout(head_dropout)
        self.head = Linear(architecture.feature_dim, num_classes)
        if architecture.distilled:
            self.head_dist = Linear(dim, num_classes)

    def embed(self, x: mx.array) -> mx.array:
        """Images to the blocks' input ``(batch, tokens, dim)``."""
        x = self.patch_embed(x)
        before = [self[name] for name in ("cls_token", "dist_token", "reg_token") if name in self]
        tokens = [spread(t, (x.shape[0], *t.shape[1:]), x.dtype) for t in before]
        if self.architecture.pos_embed and self.architecture.no_embed_class:
            x = x + spread(self.pos_embed, x.shape, x.dtype)
        x = mx.concatenate([*tokens, x], axis=1)
        if self.architecture.pos_embed and not self.architecture.no_embed_class:
            x = x + spread(self.pos_embed, x.shape, x.dtype)
        return self.norm_pre(x)

    def between(self, x: mx.array, start: int, stop: int) -> mx.array:
        """What enters block ``start`` to what enters block ``stop``; past the last, only the tokens that are read."""
        read = [None] * (len(self.blocks) - 1) + [self.architecture.tokens_read]
        for index, (block, queries) in enumerate(zip(self.blocks, read, strict=True)):
            key = next_key()  # a key a block, so that neither recomputing nor leaving out blocks changes a draw
            if start <= index < stop:
                with randomness(key):
                    x = (recomputed(block, self.shared) if self.checkpointing and self.training else block)(x, queries)
        return x

    def pool(self, x: mx.array) -> mx.array:
        """Tokens to one feature vector an image."""
        token = x[:, 0]
        if self.architecture.global_pool == "token":
            return token
        if not self.architecture.pool_include_prefix:
            x = x[:, self.architecture.num_prefix_tokens :]
        if self.architecture.global_pool == "map":
            return self.attn_pool(x)
        mean = x.astype(mx.float32).mean(axis=1).astype(x.dtype)  # in float16 the sum of many tokens overflows
        return mean if self.architecture.global_pool == "avg" else mx.concatenate([token, mean], axis=1)

    def vectors(self, x: mx.array) -> list[mx.array]:
        """The last block's tokens to what each head reads, ``(batch, dim)``: one vector, two with distillation."""
        x = self.norm(x)
        return [self.fc_norm(self.pool(x)), *([x[:, 1]] if self.architecture.distilled else [])]

    def prefix(self, x: mx.array, end: int) -> mx.array:
        """Images to what enters block ``end``; past the depth, to the heads' vectors ``(batch, heads, dim)``."""
        x = self.between(self.embed(x), 0, end)
        return mx.stack(self.vectors(x), axis=1) if end > len(self.blocks) else x

    def suffix(self, x: mx.array, start: int) -> mx.array:
        """The logits of what ``prefix`` gave for ``end = start``; for 0, of what ``embed`` gave."""
        x = self.between(x, start, len(self.blocks))
        vectors = self.vectors(x) if start <= len(self.blocks) else [x[:, head] for head in range(x.shape[1])]
        logits = self.head(self.head_drop(vectors[0]))
        if self.architecture.distilled:
            logits = (logits + self.head_dist(self.head_drop(vectors[1]))) / 2
        return logits

    def __call__(self, x: mx.array) -> mx.array:
        forks.check()
        return self.suffix(self.embed(x), 0)


def recomputed(block: nn.Module, shared: nn.Module) -> Callable[[mx.array, int | None], mx.array]:
    """The block under gradient checkpointing: its activations are computed again in the backward pass.

    Trained parameters go in as arguments, since a checkpointed function passes no gradient to what it captures, and so
    does a key, so that the second pass drops what the first one dropped.
    """

    def forward(x: mx.array, queries: int | None) -> mx.array:
        def run(parameters: dict, common: dict, x: mx.array, *keys: mx.array) -> mx.array:
            block.update(parameters)
            shared.update(common)
            with randomness(mx.stop_gradient(keys[0]) if keys else None):
                return block(x, queries)

        key = current_key()
        keys = () if key is None else (key,)
        return mx.checkpoint(run)(block.trainable_parameters(), shared.trainable_parameters(), x, *keys)

    return forward

"""timm's ``VisionTransformer``, distilled DeiT and ``Eva``, with timm's parameter names."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_peft.backend import forks
from mlx_peft.backend.models.block import block_class, recomputed
from mlx_peft.backend.models.embed import PatchEmbed
from mlx_peft.backend.models.layers import Linear, norm, spread
from mlx_peft.backend.models.pool import AttentionPool
from mlx_peft.backend.models.positions import POSITIONS
from mlx_peft.backend.models.preprocess import preprocess
from mlx_peft.backend.models.reducer import Reducer
from mlx_peft.backend.models.reducers import penalty, reducers, routers
from mlx_peft.backend.models.stochastic import Dropout, next_key, randomness
from mlx_peft.backend.models.tokens import Tokens
from mlx_peft.config.methods import MethodConfig
from mlx_peft.config.quantization import QAT, Quantization
from mlx_peft.config.schema import Model
from mlx_peft.config.tokens import ReducerConfig
from mlx_peft.library.answering import Answering
from mlx_peft.library.standing import Standing
from mlx_peft.vit.architecture import Architecture
from mlx_peft.vit.places import PARAMETERS, PATCH, Places


class VisionTransformer(Answering, nn.Module):
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
        self.standing = Standing()
        self.qat: QAT | None = None  # that it is trained through
        self.tokens: ReducerConfig | None = None  # how it has fewer of them
        self.description: Model | None = None  # as it was asked for
        self.classes: tuple[str, ...] = ()  # names of the head's rows
        self.shared = nn.Module()  # what a method gives to several blocks at once
        self.routers = nn.Module()  # what its reducers train
        self.patch_embed = PatchEmbed(architecture)
        for kind, count in architecture.places.only(PARAMETERS).runs:
            self[PARAMETERS[kind]] = mx.zeros((1, count, dim))
        if architecture.pos_embed:
            self.pos_embed = mx.zeros((1, architecture.position_tokens, dim))
        kind, learnt = POSITIONS[architecture.positions], nn.Module()
        setattr(self, kind.home, learnt)  # what its positions learn for all blocks
        self.positions = kind(architecture, learnt)
        self.norm_pre = norm(architecture, dim, architecture.pre_norm)
        block = block_class(architecture)
        self.blocks = [block(architecture, drop_path * i / max(depth - 1, 1), i) for i in range(depth)]
        after = architecture.norm_after_pool
        self.norm = norm(architecture, dim, architecture.final_norm and not after)
        if architecture.global_pool == "map":
            self.attn_pool = AttentionPool(architecture)
        self.fc_norm = norm(architecture, dim, architecture.final_norm and after)
        self.head_drop = Dropout(head_dropout)
        self.head = Linear(architecture.feature_dim, num_classes)
        if architecture.distilled:
            self.head_dist = Linear(dim, num_classes)

    def reduce(self, config: ReducerConfig | None, seed: int = 0) -> None:
        """Has reducers stand in its blocks, in the place of those that do; None: none. ``seed``: of what they train.

        Raises UserError where the model cannot be reduced so.
        """
        if config is not None:
            config.check(self.architecture)
        if self.method is not None:
            self.method.check_tokens(config)
        self.routers = routers(config, self.architecture, seed)
        found = reducers(config, len(self.blocks), self.routers)
        for number, block in enumerate(self.blocks):
            block.base_layer.reducer = found.get(number, Reducer())
        self.tokens = config

    def embed(self, x: mx.array) -> Tokens:
        """Images to the tokens that enter the blocks."""
        patches = self.patch_embed(x)
        learnt = [self[PARAMETERS[kind]] for kind in self.architecture.places.only(PARAMETERS).kinds]
        special = [spread(token, (x.shape[0], *token.shape[1:]), patches.dtype) for token in learnt]
        x = self.positions.joined(special, patches, self.get("pos_embed"))
        return Tokens(self.norm_pre(x), self.architecture.places)

    def between(self, tokens: Tokens, start: int, stop: int, whole: bool = False) -> Tokens:
        """What enters block ``start`` to what enters block ``stop``.

        Past the last there are only the tokens that are read, unless ``whole``.
        """
        read = [None] * (len(self.blocks) - 1) + [None if whole else self.architecture.kinds_read]
        for index, (block, queries) in enumerate(zip(self.blocks, read, strict=True)):
            key = next_key()  # a key a block, so that neither recomputing nor leaving out blocks changes a draw
            if start <= index < stop:
                again = self.checkpointing and self.training
                above = (self.shared, self.routers, self[self.positions.home], self.positions)
                run = recomputed(block, *above) if again else block
                with randomness(key):
                    tokens = run(tokens, self.positions, queries)
        return tokens

    def pool(self, tokens: Tokens) -> mx.array:
        """Tokens to one feature vector an image; a mean counts each patch token as often as it stands for a patch."""
        how = self.architecture.global_pool
        if how == "token":
            return tokens.first("class")
        read = tokens if self.architecture.pool_include_prefix else tokens.only((PATCH,))
        if how == "map":
            return self.attn_pool(read)
        return read.mean() if how == "avg" else mx.concatenate([tokens.first("class"), read.mean()], axis=1)

    def vectors(self, tokens: Tokens) -> list[mx.array]:
        """The last block's tokens to what each head reads, ``(batch, dim)``: one vector, two with distillation."""
        return self.pooled(tokens.holding(self.norm(tokens.x)))

    def pooled(self, tokens: Tokens) -> list[mx.array]:
        """The same of tokens behind the final norm."""
        second = [tokens.first("distillation")] if self.architecture.distilled else []
        return [self.fc_norm(self.pool(tokens)), *second]

    def forward_features(self, x: mx.array) -> mx.array:
        """timm's: normalised images to all tokens behind the final norm, ``(batch, tokens, dim)``."""
        forks.check()
        return self.norm(self.between(self.embed(x), 0, len(self.blocks), whole=True).x)

    def forward_head(self, x: mx.array, pre_logits: bool = False) -> mx.array:
        """timm's: what ``forward_features`` gave to logits; or to what the head reads, with two heads the mean.

        Raises UserError where patches were merged and all are pooled: x does not say what each token stands for.
        """
        if self.tokens is not None:
            self.tokens.must_pool(self.architecture, x.shape[1])
        vectors = self.pooled(Tokens(x, self.architecture.places))
        return sum(vectors) / len(vectors) if pre_logits else self.classify(vectors)

    def prefix(self, x: mx.array, end: int) -> mx.array:
        """Images to what enters block ``end``; past the depth, to the heads' vectors ``(batch, heads, dim)``.

        Raises ValueError where tokens come out of which more must be known than where they stand in a plain model: a
        method's prompts, and patch tokens that a reducer has left. They belong behind the prefix.
        """
        tokens = self.between(self.embed(x), 0, end)
        if end > len(self.blocks):
            return mx.stack(self.vectors(tokens), axis=1)
        if tokens.arrays().keys() != {"x"} or tokens.places != self._places(end):
            raise ValueError(f"what enters block {end} is not as in a plain model: {tokens.places}")
        return tokens.x

    def suffix(self, x: mx.array, start: int) -> mx.array:
        """The logits of what ``prefix`` gave for ``end = start``."""
        if start > len(self.blocks):
            for _ in self.blocks:
                next_key()  # that of each block, so that leaving them out changes no draw of the heads
            return self.classify([x[:, head] for head in range(x.shape[1])])
        return self.classify(self.vectors(self.between(Tokens(x, self._places(start)), start, len(self.blocks))))

    def _places(self, block: int) -> Places:
        """What enters a block of a plain model; the depth: what comes out of the last."""
        read = self.architecture.kinds_read if block == len(self.blocks) else None
        return self.architecture.places if read is None else self.architecture.places.only(read)

    def classify(self, vectors: list[mx.array]) -> mx.array:
        """What each head reads to logits ``(batch, classes)``."""
        logits = self.head(self.head_drop(vectors[0]))
        if self.architecture.distilled:
            logits = (logits + self.head_dist(self.head_drop(vectors[1]))) / 2
        return logits

    def pixels(self, images: np.ndarray) -> mx.array:
        """uint8 images ``(batch, h, w, 3)`` as its input, normalised as its weights want them."""
        return preprocess(mx.array(images), self.base.preprocessing, self.architecture.img_size, mx.float32)

    def logits(self, images: np.ndarray) -> np.ndarray:
        """See ``Answering``."""
        return np.array(self(self.pixels(images)).astype(mx.float32))

    def run(self, x: mx.array) -> tuple[mx.array, mx.array | float]:
        """Normalised images to logits, and what the loss gains in training of what its reducers did; 0 for most."""
        forks.check()
        tokens = self.between(self.embed(x), 0, len(self.blocks))
        return self.classify(self.vectors(tokens)), penalty(self.tokens, tokens.passed)

    def __call__(self, x: mx.array) -> mx.array:
        return self.run(x)[0]

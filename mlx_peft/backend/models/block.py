"""A block of a ViT, and how it is computed again in the backward pass."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from mlx_peft.backend.installed import installed
from mlx_peft.backend.models.attention import ATTENTIONS
from mlx_peft.backend.models.layers import layer_scale, norm, spread
from mlx_peft.backend.models.mlp import MLPS
from mlx_peft.backend.models.positions import Positions
from mlx_peft.backend.models.reducer import Reducer
from mlx_peft.backend.models.stochastic import DropPath, current_key, randomness
from mlx_peft.backend.models.tokens import Arrays, Tokens, summed
from mlx_peft.vit.architecture import Architecture
from mlx_peft.vit.places import Kinds


class Block(nn.Module):
    """x + attn(norm1(x)), then x + mlp(norm2(x)); layer scale and drop path are identities unless asked for.

    Between the two stands the reducer, an identity too, which may leave fewer tokens. With ``queries``, only tokens of
    these kinds come out: what the others would be is not computed.

    Args:
        architecture: what the model is made of.
        drop_path: stochastic depth of its two halves.
        number: which of the model's blocks it is.
    """

    def __init__(self, architecture: Architecture, drop_path: float = 0.0, number: int = 0):
        super().__init__()
        dim = architecture.embed_dim
        self.norm1 = norm(architecture, dim)
        self.attn = ATTENTIONS[architecture.qkv](architecture, number)
        self.ls1 = layer_scale(architecture)
        self.drop_path1 = DropPath(drop_path)
        self.reducer = Reducer()
        self.norm2 = norm(architecture, dim)
        self.mlp = MLPS[architecture.mlp_layer](architecture)
        self.ls2 = layer_scale(architecture)
        self.drop_path2 = DropPath(drop_path)

    @property
    def base_layer(self) -> Block:
        """The block itself. What a method puts around it has it as its own."""
        return self

    def __call__(self, tokens: Tokens, positions: Positions, queries: Kinds | None = None) -> Tokens:
        tokens = self.attend(tokens, positions, queries)
        return tokens.fed(self.feed(self.read_by_mlp(tokens.x)))

    def attend(self, tokens: Tokens, positions: Positions, queries: Kinds | None = None, *beside: mx.array) -> Tokens:
        """The first half: x + attn(norm1(x)), with what is beside attention, and what the reducer leaves of it."""
        x, attended = self.attn(tokens.holding(self.read_by_attention(tokens.x)), positions, queries)
        tokens = tokens.only(queries)
        branch = self.drop_path1(self.scale_attention(x))
        return self.reducer(tokens.holding(summed(tokens.x, branch, *beside)), attended)

    def read_by_attention(self, x: mx.array) -> mx.array:
        """What attention reads of the tokens: norm1(x)."""
        return self.norm1(x)

    def read_by_mlp(self, x: mx.array) -> mx.array:
        """What the MLP reads of them: norm2(x)."""
        return self.norm2(x)

    def feed(self, x: mx.array) -> mx.array:
        """The second half's branch, of what the MLP reads: mlp(x)."""
        return self.drop_path2(self.scale_mlp(self.mlp(x)))

    def scale_attention(self, x: mx.array) -> mx.array:
        """The layer scale of the first half, and what a method puts behind it (``ls1``)."""
        return self.ls1(x)

    def scale_mlp(self, x: mx.array) -> mx.array:
        """That of the second half (``ls2``)."""
        return self.ls2(x)


class EvaBlock(Block):
    """The same with its layer scales on the block itself, gamma_1 and gamma_2: timm's ``Eva`` and ``Beit``."""

    def __init__(self, architecture: Architecture, drop_path: float = 0.0, number: int = 0):
        super().__init__(architecture.model_copy(update={"init_values": None}), drop_path, number)
        self.scales = architecture.layer_scale
        if self.scales:
            self.gamma_1 = mx.ones((architecture.embed_dim,))
            self.gamma_2 = mx.ones((architecture.embed_dim,))

    def scale_attention(self, x: mx.array) -> mx.array:
        return super().scale_attention(x * spread(self.gamma_1, x.shape, x.dtype) if self.scales else x)

    def scale_mlp(self, x: mx.array) -> mx.array:
        return super().scale_mlp(x * spread(self.gamma_2, x.shape, x.dtype) if self.scales else x)


class PostNormBlock(Block):
    """x + norm1(attn(x)), then x + norm2(mlp(x)): timm's ``ResPostBlock`` and ``EvaBlockPostNorm``. No layer scale."""

    def __init__(self, architecture: Architecture, drop_path: float = 0.0, number: int = 0):
        super().__init__(architecture.model_copy(update={"init_values": None}), drop_path, number)

    def read_by_attention(self, x: mx.array) -> mx.array:
        return x

    def read_by_mlp(self, x: mx.array) -> mx.array:
        return x

    def scale_attention(self, x: mx.array) -> mx.array:
        return super().scale_attention(self.norm1(x))

    def scale_mlp(self, x: mx.array) -> mx.array:
        return super().scale_mlp(self.norm2(x))


BLOCKS = {"vit": Block, "eva": EvaBlock, "beit": EvaBlock}
"""A model's blocks, by its family, where they normalise what is read."""


def block_class(architecture: Architecture) -> type[Block]:
    """What a model's blocks are."""
    return PostNormBlock if architecture.post_norm else BLOCKS[architecture.family]


def recomputed(block: nn.Module, *above: nn.Module) -> Callable[[Tokens, Positions, Kinds | None], Tokens]:
    """The block under gradient checkpointing: its activations are computed again in the backward pass.

    Trained parameters, its own and those of what stands above all blocks, go in as arguments, since a checkpointed
    function passes no gradient to what it captures, and so does a key, so that the second pass drops what the first one
    dropped.
    """

    def forward(tokens: Tokens, positions: Positions, queries: Kinds | None) -> Tokens:
        modules, places = (block, *above), []

        def run(parameters: list[Arrays], arrays: Arrays, *keys: mx.array) -> Arrays:
            with ExitStack() as lent:
                for module, own in zip(modules, parameters, strict=True):
                    lent.enter_context(installed(module, own))
                lent.enter_context(randomness(mx.stop_gradient(keys[0]) if keys else None))
                found = block(tokens.with_arrays(arrays), positions, queries)
            places.append(found.places)
            return found.arrays()

        key = current_key()
        keys = () if key is None else (key,)
        trained = [dict(tree_flatten(module.trainable_parameters())) for module in modules]
        arrays = mx.checkpoint(run)(trained, tokens.arrays(), *keys)
        return Tokens(places=places[-1], **arrays)

    return forward

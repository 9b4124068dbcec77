"""A block of a ViT, and how it is computed again in the backward pass."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mlx_peft.vit.architecture import Architecture
from mlx_peft.vit.places import Kinds
from torch_ref.models.attention import ATTENTIONS
from torch_ref.models.layers import layer_scale, norm
from torch_ref.models.mlp import MLPS
from torch_ref.models.positions import Positions
from torch_ref.models.reducer import Reducer
from torch_ref.models.stochastic import DropPath
from torch_ref.models.tokens import Tokens, summed


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

    def forward(self, tokens: Tokens, positions: Positions, queries: Kinds | None = None) -> Tokens:
        tokens = self.attend(tokens, positions, queries)
        return tokens.fed(self.feed(self.read_by_mlp(tokens.x)))

    def attend(self, tokens: Tokens, positions: Positions, queries: Kinds | None = None, *beside: Tensor) -> Tokens:
        """The first half: x + attn(norm1(x)), with what is beside attention, and what the reducer leaves of it."""
        x, attended = self.attn(tokens.holding(self.read_by_attention(tokens.x)), positions, queries)
        tokens = tokens.only(queries)
        branch = self.drop_path1(self.scale_attention(x))
        return self.reducer(tokens.holding(summed(tokens.x, branch, *beside)), attended)

    def read_by_attention(self, x: Tensor) -> Tensor:
        """What attention reads of the tokens: norm1(x)."""
        return self.norm1(x)

    def read_by_mlp(self, x: Tensor) -> Tensor:
        """What the MLP reads of them: norm2(x)."""
        return self.norm2(x)

    def feed(self, x: Tensor) -> Tensor:
        """The second half's branch, of what the MLP reads: mlp(x)."""
        return self.drop_path2(self.scale_mlp(self.mlp(x)))

    def scale_attention(self, x: Tensor) -> Tensor:
        """The layer scale of the first half, and what a method puts behind it (``ls1``)."""
        return self.ls1(x)

    def scale_mlp(self, x: Tensor) -> Tensor:
        """That of the second half (``ls2``)."""
        return self.ls2(x)


class EvaBlock(Block):
    """The same with its layer scales on the block itself, gamma_1 and gamma_2: timm's ``Eva`` and ``Beit``."""

    def __init__(self, architecture: Architecture, drop_path: float = 0.0, number: int = 0):
        super().__init__(architecture.model_copy(update={"init_values": None}), drop_path, number)
        self.scales = architecture.layer_scale
        if self.scales:
            self.gamma_1 = nn.Parameter(torch.ones(architecture.embed_dim))
            self.gamma_2 = nn.Parameter(torch.ones(architecture.embed_dim))

    def scale_attention(self, x: Tensor) -> Tensor:
        return super().scale_attention(x * self.gamma_1.to(x.dtype) if self.scales else x)

    def scale_mlp(self, x: Tensor) -> Tensor:
        return super().scale_mlp(x * self.gamma_2.to(x.dtype) if self.scales else x)


class PostNormBlock(Block):
    """x + norm1(attn(x)), then x + norm2(mlp(x)): timm's ``ResPostBlock`` and ``EvaBlockPostNorm``. No layer scale."""

    def __init__(self, architecture: Architecture, drop_path: float = 0.0, number: int = 0):
        super().__init__(architecture.model_copy(update={"init_values": None}), drop_path, number)

    def read_by_attention(self, x: Tensor) -> Tensor:
        return x

    def read_by_mlp(self, x: Tensor) -> Tensor:
        return x

    def scale_attention(self, x: Tensor) -> Tensor:
        return super().scale_attention(self.norm1(x))

    def scale_mlp(self, x: Tensor) -> Tensor:
        return super().scale_mlp(self.norm2(x))


BLOCKS = {"vit": Block, "eva": EvaBlock, "beit": EvaBlock}
"""A model's blocks, by its family, where they normalise what is read."""


def block_class(architecture: Architecture) -> type[Block]:
    """What a model's blocks are."""
    return PostNormBlock if architecture.post_norm else BLOCKS[architecture.family]


def recomputed(block: nn.Module) -> Callable[[Tokens, Positions, Kinds | None], Tokens]:
    """The block under gradient checkpointing: its activations are computed again in the backward pass.

    torch restores its generators for the second pass, so that it drops what the first one dropped.
    """
    return partial(checkpoint, block, use_reentrant=False)

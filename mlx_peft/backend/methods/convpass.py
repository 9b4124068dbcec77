"""Convpass: a bottleneck with a convolution over the grid of patches, beside attention and beside the MLP.

x' = x + attn(norm1(x)) + s f(norm1(x)), then x' + mlp(norm2(x')) + s f'(norm2(x')), each

    f(x) = up(drop(act(conv(act(down(x)))))), act(x) = x sigmoid(1.702 x)

down ``(bottleneck, dim)``, conv ``(bottleneck, bottleneck, 3, 3)`` with a border of zeros, up ``(dim, bottleneck)``,
all with a bias. A token that is no patch is a grid of 1 x 1: to it conv is its middle. Initially down is Xavier
uniform, bound sqrt(6 / (dim + bottleneck)); conv the identity, or Xavier uniform; up and the biases are 0.
Jie and Deng 2022 (arXiv 2207.07039), section 3.2; initial values and dropout are their code's. As in that code,
stochastic depth acts on f by itself; layer scale, which their models have not, does not.
"""

from __future__ import annotations

import math

import mlx.core as mx
import mlx.nn as nn

from mlx_peft.adaptation.convolutions import CONVOLUTIONS
from mlx_peft.backend.methods.adapted import Adapted
from mlx_peft.backend.methods.method import Method
from mlx_peft.backend.methods.targets import find, replace
from mlx_peft.backend.models.block import Block
from mlx_peft.backend.models.layers import ChannelsLast, Linear, quick_gelu, spread
from mlx_peft.backend.models.positions import Positions
from mlx_peft.backend.models.stochastic import Dropout
from mlx_peft.backend.models.tokens import Tokens
from mlx_peft.backend.models.vit import VisionTransformer
from mlx_peft.config.methods import Convpass
from mlx_peft.vit.initial import uniform
from mlx_peft.vit.places import PATCH, Kinds


class GridConv(ChannelsLast):
    """A 3x3 convolution of tokens: of patches over their grid, of every other token alone."""

    def __init__(self, weight: mx.array):
        super().__init__()
        self.weight = weight.transpose(0, 2, 3, 1)
        self.bias = mx.zeros((len(weight),))

    def __call__(self, tokens: Tokens) -> mx.array:
        """``(batch, tokens, width)`` likewise; all patches must be there."""
        x = tokens.x
        parts = [
            self.over_grid(x[:, span]) if kind == PATCH else self.alone(x[:, span])
            for kind, span in ((kind, tokens.places.span(kind)) for kind in tokens.places.kinds)
        ]
        found = parts[0] if len(parts) == 1 else mx.concatenate(parts, axis=1)
        return found + spread(self.bias, found.shape, found.dtype)

    def over_grid(self, x: mx.array) -> mx.array:
        """Of patches ``(batch, grid^2, width)``, the bias left out."""
        batch, count, width = x.shape
        side = math.isqrt(count)
        x = mx.conv2d(x.reshape(batch, side, side, width), self.weight.astype(x.dtype), padding=1)
        return x.reshape(batch, count, width)

    def alone(self, x: mx.array) -> mx.array:
        """Of tokens ``(batch, n, width)`` around which there is nothing, the bias left out."""
        return x @ self.weight[:, 1, 1].astype(x.dtype).T


class Bypass(nn.Module):
    """up(drop(act(conv(act(down(x)))))), in float32 whatever the base's dtype.

    Args:
        down: the initial weight of down, ``(bottleneck, dim)``.
        conv: likewise of conv, ``(bottleneck, bottleneck, 3, 3)``.
        dropout: probability on the bottleneck.
    """

    def __init__(self, down: mx.array, conv: mx.array, dropout: float):
        super().__init__()
        bottleneck, dim = down.shape
        self.adapter_down = Linear(dim, bottleneck)
        self.adapter_down.weight = down
        self.adapter_conv = GridConv(conv)
        self.adapter_up = Linear(bottleneck, dim)
        self.dropout = Dropout(dropout)

    def __call__(self, tokens: Tokens) -> mx.array:
        narrow = tokens.holding(quick_gelu(self.adapter_down(tokens.x)))
        return self.adapter_up(self.dropout(quick_gelu(self.adapter_conv(narrow))))


class BypassedBlock(Adapted):
    """A frozen block with a trained bypass beside each of its halves.

    Args:
        base_layer: the block; it is kept as ``base_layer``.
        bypass_attn, bypass_mlp: beside attention, and beside the MLP.
        scale: s.
    """

    def __init__(self, base_layer: Block, bypass_attn: Bypass, bypass_mlp: Bypass, scale: float):
        super().__init__(base_layer)
        self.bypass_attn = bypass_attn
        self.bypass_mlp = bypass_mlp
        self.scale = scale

    def __call__(self, tokens: Tokens, positions: Positions, queries: Kinds | None = None) -> Tokens:
        block = self.base_layer
        normed = tokens.holding(block.read_by_attention(tokens.x)).only(queries)
        added = self.scale * block.drop_path1(self.bypass_attn(normed))
        tokens = block.attend(tokens, positions, queries, added)
        normed = tokens.holding(block.read_by_mlp(tokens.x))
        added = self.scale * block.drop_path2(self.bypass_mlp(normed))
        return tokens.fed(block.feed(normed.x), added)


class ConvpassMethod(Method[Convpass]):
    """Every chosen block is wrapped."""

    def apply(self, model: VisionTransformer, config: Convpass, seed: int) -> None:
        for number in config.chosen_blocks(model.architecture):
            path = f"blocks.{number}"
            bypasses = [self._bypass(model, config, seed, f"{path}.{place}") for place in config.places]
            replace(model, path, BypassedBlock(find(model, path), *bypasses, config.scale))

    def _bypass(self, model: VisionTransformer, config: Convpass, seed: int, path: str) -> Bypass:
        width, dim = config.bottleneck, model.architecture.embed_dim
        down = uniform((width, dim), (6 / (dim + width)) ** 0.5, seed, f"{path}.adapter_down.weight")
        conv = CONVOLUTIONS[config.conv](width, seed, f"{path}.adapter_conv.weight")
        return Bypass(mx.array(down), mx.array(conv), config.dropout)

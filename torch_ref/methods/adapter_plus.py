"""Adapter+: a bottleneck behind each block, with a trained factor for each channel.

x' = block(x), then x' + s * up(drop(gelu(down(x')))); down ``(bottleneck, dim)`` and up ``(dim, bottleneck)``, both
with a bias, s ``(dim,)``. Initially down and up ~ N(0, 0.01), cut off at two deviations, as Houlsby et al. have it;
the biases are 0, and s is 1.
Steitz and Roth 2024 (arXiv 2406.06820), section 3: the Post-Adapter with channel-wise scaling.

In training each image goes past each bottleneck with the probability ``drop_path``, 0.1 as the authors have it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mlx_peft.config.methods import AdapterPlus
from mlx_peft.vit.places import Kinds
from torch_ref.methods.bottleneck import Bottleneck, near_identity
from torch_ref.methods.method import Method
from torch_ref.methods.targets import find, replace
from torch_ref.models.block import Block
from torch_ref.models.gelu import gelu
from torch_ref.models.layers import spread
from torch_ref.models.positions import Positions
from torch_ref.models.stochastic import DropPath
from torch_ref.models.tokens import Tokens
from torch_ref.models.vit import VisionTransformer


class AdaptedBlock(Bottleneck):
    """A frozen block with a trained bottleneck behind it.

    Args:
        base_layer: the block; it is kept as ``base_layer``.
        down: the initial weight of down, ``(bottleneck, dim)``.
        up: likewise of up, ``(dim, bottleneck)``.
        dropout: probability on the bottleneck.
        drop_path: probability that an image goes past it.
    """

    def __init__(self, base_layer: Block, down: Tensor, up: Tensor, dropout: float = 0.0, drop_path: float = 0.0):
        super().__init__(base_layer, gelu, down, up, dropout)
        self.adapter_scale = nn.Parameter(torch.ones(len(up), device=up.device))
        self.drop_path = DropPath(drop_path)

    def forward(self, tokens: Tokens, positions: Positions, queries: Kinds | None = None) -> Tokens:
        block = self.base_layer
        tokens = block.attend(tokens, positions, queries)
        branch = block.feed(block.read_by_mlp(tokens.x))
        fed = tokens.fed(branch)
        x = fed.x
        added = self.drop_path(self.bottleneck(x)) * spread(self.adapter_scale, x.shape, x.dtype)
        return fed.holding(x + added) if x.dtype == torch.float32 else tokens.fed(branch, added)


class AdapterPlusMethod(Method[AdapterPlus]):
    """Every chosen block is wrapped."""

    def apply(self, model: VisionTransformer, config: AdapterPlus, seed: int) -> None:
        dim, device = model.architecture.embed_dim, model.head.weight.device
        for path in config.paths(model.architecture):
            start = (part.to(device) for part in near_identity(config.bottleneck, dim, seed, path))
            replace(model, path, AdaptedBlock(find(model, path), *start, config.dropout, config.drop_path))

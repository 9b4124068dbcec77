"""AdaptFormer: a small bottleneck beside the MLP of a block.

x' = x + attn(norm1(x)), then x' + mlp(norm2(x')) + s up(drop(relu(down(norm2(x'))))); down ``(bottleneck, dim)`` and up
``(dim, bottleneck)``, both with a bias. Initially down ~ U(-1/sqrt(dim), 1/sqrt(dim)), which is Kaiming uniform with
a = sqrt 5; up and the biases are 0.
Chen et al. 2022 (arXiv 2205.13535), section 3.2, equations 3 and 4.

By equation 3 the bottleneck reads LN(x'), as the MLP does by equation 4, and so it is here: its input has the same size
whatever the backbone. The code that the authors published reads x' itself unless told otherwise. As in that code,
stochastic depth does not act on the bottleneck; nor does layer scale. That code also puts a BatchNorm without factors
before the head, which is left out here: the head reads what it reads under every other method.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mlx_peft.config.methods import AdaptFormer
from mlx_peft.vit.initial import kaiming_uniform
from mlx_peft.vit.places import Kinds
from torch_ref.methods.bottleneck import Bottleneck
from torch_ref.methods.method import Method
from torch_ref.methods.targets import find, replace
from torch_ref.models.block import Block
from torch_ref.models.positions import Positions
from torch_ref.models.tokens import Tokens
from torch_ref.models.vit import VisionTransformer


class AdaptedBlock(Bottleneck):
    """A frozen block with a trained bottleneck beside its MLP.

    Args:
        base_layer: the block; it is kept as ``base_layer``.
        down: the initial weight of down, ``(bottleneck, dim)``.
        scale: s.
        dropout: probability on the bottleneck.
    """

    def __init__(self, base_layer: Block, down: Tensor, scale: float, dropout: float = 0.0):
        super().__init__(base_layer, F.relu, down, dropout=dropout)
        self.scale = scale

    def forward(self, tokens: Tokens, positions: Positions, queries: Kinds | None = None) -> Tokens:
        tokens = self.base_layer.attend(tokens, positions, queries)
        read = self.base_layer.read_by_mlp(tokens.x)
        added = self.scale * self.bottleneck(read)
        return tokens.fed(self.base_layer.feed(read), added)


class AdaptFormerMethod(Method[AdaptFormer]):
    """Every chosen block is wrapped."""

    def apply(self, model: VisionTransformer, config: AdaptFormer, seed: int) -> None:
        dim, device = model.architecture.embed_dim, model.head.weight.device
        for path in config.paths(model.architecture):
            name = f"{path}.adapter_down.weight"
            down = torch.from_numpy(kaiming_uniform((config.bottleneck, dim), dim, seed, name)).to(device)
            replace(model, path, AdaptedBlock(find(model, path), down, config.scale, config.dropout))

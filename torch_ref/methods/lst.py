"""Ladder side-tuning: a narrow ViT beside the model's blocks, which reads what leaves each of them.

x_i is what leaves block i of the model, x_0 what enters its blocks; s_0 = D_0 x_0, and

    s_i = block_i(m_i D_i x_i + (1 - m_i) s_(i - 1)), m_i = sigmoid(a_i / T)

block_i: one like the model's, ``width = dim / reduction``; D_i ``(width, dim)``, with a bias; a_i a number, initially
0; T = 0.1. What leaves the last block, x_n, becomes x_n + U norm(s_n), U ``(dim, width)``, with a bias, initially 0.
Sung et al. 2022 (arXiv 2206.06522), sections 3.1 and 3.2. Blocks without a step pass s on: their "layer dropping".

The paper's side network answers alone, in the place of x_n, and starts as a pruned copy of the model. Here its answer
is added, so that training starts from the model's own, as it does under other methods, and it starts as timm draws a
ViT. In training x_i is a constant to it: no gradient goes through the model's blocks, and nothing is kept for one.
"""

from __future__ import annotations

from dataclasses import replace as replaced

import torch
from torch import Tensor, nn

from mlx_peft.config.methods import LST
from mlx_peft.vit.architecture import Architecture
from mlx_peft.vit.initial import initial_values
from mlx_peft.vit.places import Kinds
from torch_ref.methods.adapted import Adapted
from torch_ref.methods.method import Method
from torch_ref.methods.targets import find, replace
from torch_ref.models.block import Block, block_class
from torch_ref.models.layers import Linear, norm, spread
from torch_ref.models.positions import Positions
from torch_ref.models.tokens import Tokens
from torch_ref.models.vit import VisionTransformer


class LadderBlock(Adapted):
    """A frozen block, and the block of the side network that reads what leaves it.

    Args:
        base_layer: the block; it is kept as ``base_layer``.
        narrow: what the side network's blocks are made of.
        dim: width of the model.
        temperature: T.
        first, last: whether the side network begins or ends here.
    """

    def __init__(self, base_layer: Block, narrow: Architecture, dim: int, temperature: float, first: bool, last: bool):
        super().__init__(base_layer)
        self.temperature, self.first, self.last = temperature, first, last
        self.positions = Positions(narrow, nn.Module())
        if first:
            self.side_first = Linear(dim, narrow.embed_dim)
        self.side_down = Linear(dim, narrow.embed_dim)
        self.side_gate = nn.Parameter(torch.zeros(1))
        self.side_block = block_class(narrow)(narrow)
        if last:
            self.side_norm = norm(narrow, narrow.embed_dim)
            self.side_up = Linear(narrow.embed_dim, dim)

    def forward(self, tokens: Tokens, positions: Positions, queries: Kinds | None = None) -> Tokens:
        side = self.side_first(self.read(tokens)) if self.first else tokens.side
        tokens = self.base_layer(tokens, positions)  # all of them, for the side network's attention
        x = self.read(tokens)
        gate = spread(torch.sigmoid(self.side_gate / self.temperature), side.shape, side.dtype)
        entering = Tokens(gate * self.side_down(x) + (1 - gate) * side, tokens.places)
        side = self.side_block(entering, self.positions, queries).x
        tokens = tokens.only(queries)
        if not self.last:
            return replaced(tokens, x=self.read(tokens), side=side)
        return replaced(tokens, x=self.read(tokens) + self.side_up(self.side_norm(side)), side=None)

    def read(self, tokens: Tokens) -> Tensor:
        """What the side network reads of the model's tokens: in training a constant to it."""
        return tokens.x.detach() if self.training else tokens.x


ZERO = ("side_gate", "side_up.weight")
"""What begins at 0."""


class LSTMethod(Method[LST]):
    """Every chosen block is wrapped."""

    def apply(self, model: VisionTransformer, config: LST, seed: int) -> None:
        architecture, narrow = model.architecture, config.narrow(model.architecture)
        blocks = config.chosen_blocks(architecture)
        values = initial_values(config.added(architecture), narrow, seed)
        for number in blocks:
            path = f"blocks.{number}"
            ends = number == blocks[0], number == blocks[-1]
            ladder = LadderBlock(find(model, path), narrow, architecture.embed_dim, config.temperature, *ends)
            own = {
                name.removeprefix(f"{path}."): value for name, value in values.items() if name.startswith(f"{path}.")
            }
            started = {name: torch.from_numpy(value) for name, value in own.items() if name not in ZERO}
            ladder.load_state_dict(started, strict=False)
            replace(model, path, ladder.to(model.head.weight.device))

"""Where the tokens of an image stand, and who is told."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlx_peft.vit import relative, rotary
from mlx_peft.vit.architecture import Architecture
from mlx_peft.vit.places import PATCH
from torch_ref.models.tokens import Tokens


class Positions(nn.Module):
    """Learnt positions: added to the tokens before the blocks, and nothing of them in attention.

    Other positions are classes made from this one. Rotary ones override ``turned``, relative ones ``bias``; both find
    in ``tokens.indices`` where in the grid the patch tokens stand that are left, and in ``tokens.places`` which tokens
    have no place in it. What they learn stands where timm has it: for one block in its attention, for all of them in
    ``learnt``, which the model has under the name ``home``.
    """

    home = "rope"

    def __init__(self, architecture: Architecture, learnt: nn.Module):
        super().__init__()
        self.of_patches = architecture.no_embed_class

    @staticmethod
    def equip(attention: nn.Module, architecture: Architecture) -> None:
        """Gives a block's attention the parameters that these positions have in each block: none."""

    def joined(self, special: list[Tensor], patches: Tensor, embedding: Tensor | None) -> Tensor:
        """[special, patches] + embedding, ``(batch, tokens, dim)``, or [special, patches + embedding].

        Args:
            special: the tokens before the patches, each ``(batch, n, dim)``.
            patches: ``(batch, grid^2, dim)``.
            embedding: ``(1, n, dim)``, of all tokens or of the patches alone; None: none.
        """
        if embedding is not None and self.of_patches:
            patches = patches + embedding.to(patches.dtype)
        x = torch.cat([*special, patches], dim=1)
        if embedding is not None and not self.of_patches:
            x = x + embedding.to(x.dtype)
        return x

    def turned(self, attention: Any, x: Tensor, tokens: Tokens) -> Tensor:
        """Queries or keys ``(batch, heads, tokens, d)`` as attention compares them: x itself.

        Args:
            attention: of which block, ``number``, they are.
            tokens: those whose queries or keys they are.
        """
        return x

    def bias(self, attention: Any, tokens: Tokens, queries: Tokens) -> Tensor | None:
        """What is added to attention's scores, to be broadcast over ``(batch, heads, queries, tokens)``: nothing.

        Args:
            attention: which may have parameters for it.
            tokens, queries: the tokens that are asked, and those that ask.
        """
        return None


class Turning(Positions):
    """Queries and keys of patches are turned, channel pair by channel pair, by angles of their places: ``vit/rotary``.

    All other tokens have no place and are not turned. A merged token has the place of the one that it was merged into.
    In float32, whatever the dtype of what is turned.
    """

    def __init__(self, architecture: Architecture, learnt: nn.Module):
        super().__init__(architecture, learnt)
        self.turn = turn_halves if architecture.rope_rotate_half else turn_neighbours

    def turned(self, attention: Any, x: Tensor, tokens: Tokens) -> Tensor:
        if PATCH not in tokens.places.kinds:
            return x
        span = tokens.places.span(PATCH)
        cos, sin = self.tables(attention, tokens)
        patches = self.turn(x[:, :, span].float(), cos, sin).to(x.dtype)
        parts = [part for part in (x[:, :, : span.start], patches, x[:, :, span.stop :]) if part.shape[2]]
        return torch.cat(parts, dim=2)

    def tables(self, attention: Any, tokens: Tokens) -> tuple[Tensor, Tensor]:
        """Cosines and sines of the patches' angles, to be broadcast over ``(batch, heads, patches, d/2)``."""
        raise NotImplementedError


class Rotary(Turning):
    """Rotary positions whose angles are those of the grid alone, alike in all blocks and heads."""

    def __init__(self, architecture: Architecture, learnt: nn.Module):
        super().__init__(architecture, learnt)
        angles = rotary.angles(architecture)
        self.register_buffer("_cos", torch.from_numpy(np.cos(angles)), persistent=False)
        self.register_buffer("_sin", torch.from_numpy(np.sin(angles)), persistent=False)

    def tables(self, attention: Any, tokens: Tokens) -> tuple[Tensor, Tensor]:
        if tokens.indices is None:
            return self._cos, self._sin
        return self._cos[tokens.indices][:, None], self._sin[tokens.indices][:, None]


class Mixed(Turning):
    """Rotary positions whose frequencies are trained, ``rope.freqs (2, depth, heads, d/2)``: t = x f_x + y f_y.

    Heo et al. 2024 (arXiv 2403.13298), section 3.2, RoPE-Mixed.
    """

    def __init__(self, architecture: Architecture, learnt: nn.Module):
        super().__init__(architecture, learnt)
        shape = (2, architecture.depth, architecture.num_heads, architecture.head_dim // 2)
        learnt.freqs = nn.Parameter(torch.zeros(shape))
        self._learnt = (learnt,)  # in a tuple, so that it has no second name
        self.register_buffer("_coordinates", torch.from_numpy(rotary.coordinates(architecture)), persistent=False)

    def tables(self, attention: Any, tokens: Tokens) -> tuple[Tensor, Tensor]:
        (learnt,) = self._learnt
        x, y = learnt.freqs[:, attention.number, :, None].float()  # each (heads, 1, d/2)
        places = self._coordinates
        places = places if tokens.indices is None else places[tokens.indices][:, None]
        angles = places[..., :1] * x + places[..., 1:] * y
        return angles.cos(), angles.sin()


class Relative(Positions):
    """A number is added to the score of two tokens that a trained table has for how they stand to each other.

    ``vit/relative``. Each block has a table of its own, ``attn.relative_position_bias_table (rows, heads)``. The class
    token has rows of its own; other tokens without a place, as prompts are, get zero.
    """

    home = "rel_pos_bias"

    def __init__(self, architecture: Architecture, learnt: nn.Module):
        super().__init__(architecture, learnt)
        self.none = architecture.grid_size**2 + 1  # the number of a token without a place
        self.register_buffer("_rows", torch.from_numpy(relative.rows(architecture.grid_size)), persistent=False)

    @staticmethod
    def equip(attention: nn.Module, architecture: Architecture) -> None:
        attention.relative_position_bias_table = nn.Parameter(torch.zeros(relative.table_shape(architecture)))

    def table(self, attention: Any) -> Tensor:
        """That of a block, ``(rows, heads)``."""
        return attention.relative_position_bias_table

    def bias(self, attention: Any, tokens: Tokens, queries: Tokens) -> Tensor | None:
        asking, asked = self.numbers(queries), self.numbers(tokens)
        which = self._rows[asking[:, :, None], asked[:, None, :]]
        table = F.pad(self.table(attention), (0, 0, 0, 1))  # its last row is zero
        return table[which].permute(0, 3, 1, 2)

    def numbers(self, tokens: Tokens) -> Tensor:
        """Which of the rows and columns of ``vit/relative.rows`` each token has, ``(1 or batch, tokens)``."""
        at = torch.arange(self.none - 1, device=self._rows.device)[None] if tokens.indices is None else tokens.indices
        named = {PATCH: 1 + at, "class": at.new_zeros(len(at), tokens.places.count("class"))}
        none = {kind: at.new_full((len(at), count), self.none) for kind, count in tokens.places.runs}
        return torch.cat([(none | named)[kind] for kind in tokens.places.kinds], dim=1)


class RelativeShared(Relative):
    """The same with one table for all blocks, ``rel_pos_bias.relative_position_bias_table``."""

    def __init__(self, architecture: Architecture, learnt: nn.Module):
        super().__init__(architecture, learnt)
        learnt.relative_position_bias_table = nn.Parameter(torch.zeros(relative.table_shape(architecture)))
        self._learnt = (learnt,)  # in a tuple, so that it has no second name

    @staticmethod
    def equip(attention: nn.Module, architecture: Architecture) -> None:
        return

    def table(self, attention: Any) -> Tensor:
        (learnt,) = self._learnt
        return learnt.relative_position_bias_table


def turn_halves(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Channels i and i + d/2 of x ``(..., d)`` turned as a pair, by angles ``(..., d/2)``."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


def turn_neighbours(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Channels 2i and 2i + 1 of x ``(..., d)`` turned as a pair, by angles ``(..., d/2)``."""
    a, b = x[..., ::2], x[..., 1::2]
    return torch.stack([a * cos - b * sin, b * cos + a * sin], dim=-1).flatten(-2)


POSITIONS = {
    "learnt": Positions,
    "rotary": Rotary,
    "mixed": Mixed,
    "relative": Relative,
    "relative_shared": RelativeShared,
}

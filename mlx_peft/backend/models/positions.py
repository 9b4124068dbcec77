"""Where the tokens of an image stand, and who is told."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_peft.backend.models.layers import spread
from mlx_peft.backend.models.tokens import Tokens
from mlx_peft.vit import relative, rotary
from mlx_peft.vit.architecture import Architecture
from mlx_peft.vit.places import PATCH


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

    def joined(self, special: list[mx.array], patches: mx.array, embedding: mx.array | None) -> mx.array:
        """[special, patches] + embedding, ``(batch, tokens, dim)``, or [special, patches + embedding].

        Args:
            special: the tokens before the patches, each ``(batch, n, dim)``.
            patches: ``(batch, grid^2, dim)``.
            embedding: ``(1, n, dim)``, of all tokens or of the patches alone; None: none.
        """
        if embedding is not None and self.of_patches:
            patches = patches + spread(embedding, patches.shape, patches.dtype)
        x = mx.concatenate([*special, patches], axis=1)
        if embedding is not None and not self.of_patches:
            x = x + spread(embedding, x.shape, x.dtype)
        return x

    def turned(self, attention: Any, x: mx.array, tokens: Tokens) -> mx.array:
        """Queries or keys ``(batch, heads, tokens, d)`` as attention compares them: x itself.

        Args:
            attention: of which block, ``number``, they are.
            tokens: those whose queries or keys they are.
        """
        return x

    def bias(self, attention: Any, tokens: Tokens, queries: Tokens) -> mx.array | None:
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

    def turned(self, attention: Any, x: mx.array, tokens: Tokens) -> mx.array:
        if PATCH not in tokens.places.kinds:
            return x
        span = tokens.places.span(PATCH)
        cos, sin = self.tables(attention, tokens)
        patches = self.turn(x[:, :, span].astype(mx.float32), cos, sin).astype(x.dtype)
        parts = [part for part in (x[:, :, : span.start], patches, x[:, :, span.stop :]) if part.shape[2]]
        return mx.concatenate(parts, axis=2)

    def tables(self, attention: Any, tokens: Tokens) -> tuple[mx.array, mx.array]:
        """Cosines and sines of the patches' angles, to be broadcast over ``(batch, heads, patches, d/2)``."""
        raise NotImplementedError


class Rotary(Turning):
    """Rotary positions whose angles are those of the grid alone, alike in all blocks and heads."""

    def __init__(self, architecture: Architecture, learnt: nn.Module):
        super().__init__(architecture, learnt)
        angles = rotary.angles(architecture)
        self._tables = mx.array(np.cos(angles)), mx.array(np.sin(angles))

    def tables(self, attention: Any, tokens: Tokens) -> tuple[mx.array, mx.array]:
        cos, sin = self._tables
        if tokens.indices is None:
            return cos, sin
        return cos[tokens.indices][:, None], sin[tokens.indices][:, None]


class Mixed(Turning):
    """Rotary positions whose frequencies are trained, ``rope.freqs (2, depth, heads, d/2)``: t = x f_x + y f_y.

    Heo et al. 2024 (arXiv 2403.13298), section 3.2, RoPE-Mixed.
    """

    def __init__(self, architecture: Architecture, learnt: nn.Module):
        super().__init__(architecture, learnt)
        shape = (2, architecture.depth, architecture.num_heads, architecture.head_dim // 2)
        learnt.freqs = mx.zeros(shape)
        self._learnt = (learnt,)  # in a tuple, so that it has no second name
        self._coordinates = mx.array(rotary.coordinates(architecture))

    def tables(self, attention: Any, tokens: Tokens) -> tuple[mx.array, mx.array]:
        (learnt,) = self._learnt
        x, y = learnt.freqs[:, attention.number, :, None].astype(mx.float32)  # each (heads, 1, d/2)
        places = self._coordinates
        places = places if tokens.indices is None else places[tokens.indices][:, None]
        angles = places[..., :1] * x + places[..., 1:] * y
        return mx.cos(angles), mx.sin(angles)


class Relative(Positions):
    """A number is added to the score of two tokens that a trained table has for how they stand to each other.

    ``vit/relative``. Each block has a table of its own, ``attn.relative_position_bias_table (rows, heads)``. The class
    token has rows of its own; other tokens without a place, as prompts are, get zero.
    """

    home = "rel_pos_bias"

    def __init__(self, architecture: Architecture, learnt: nn.Module):
        super().__init__(architecture, learnt)
        self.none = architecture.grid_size**2 + 1  # the number of a token without a place
        self._rows = mx.array(relative.rows(architecture.grid_size).astype(np.int32))

    @staticmethod
    def equip(attention: nn.Module, architecture: Architecture) -> None:
        attention.relative_position_bias_table = mx.zeros(relative.table_shape(architecture))

    def table(self, attention: Any) -> mx.array:
        """That of a block, ``(rows, heads)``."""
        return attention.relative_position_bias_table

    def bias(self, attention: Any, tokens: Tokens, queries: Tokens) -> mx.array | None:
        asking, asked = self.numbers(queries), self.numbers(tokens)
        which = mx.stop_gradient(self._rows[asking[:, :, None], asked[:, None, :]])
        table = mx.pad(self.table(attention), ((0, 1), (0, 0)))  # its last row is zero
        return table[which].transpose(0, 3, 1, 2)

    def numbers(self, tokens: Tokens) -> mx.array:
        """Which of the rows and columns of ``vit/relative.rows`` each token has, ``(1 or batch, tokens)``."""
        at = mx.arange(self.none - 1)[None] if tokens.indices is None else tokens.indices
        named = {PATCH: 1 + at, "class": mx.zeros((len(at), tokens.places.count("class")), at.dtype)}
        none = {kind: mx.full((len(at), count), self.none, at.dtype) for kind, count in tokens.places.runs}
        return mx.concatenate([(none | named)[kind] for kind in tokens.places.kinds], axis=1)


class RelativeShared(Relative):
    """The same with one table for all blocks, ``rel_pos_bias.relative_position_bias_table``."""

    def __init__(self, architecture: Architecture, learnt: nn.Module):
        super().__init__(architecture, learnt)
        learnt.relative_position_bias_table = mx.zeros(relative.table_shape(architecture))
        self._learnt = (learnt,)  # in a tuple, so that it has no second name

    @staticmethod
    def equip(attention: nn.Module, architecture: Architecture) -> None:
        return

    def table(self, attention: Any) -> mx.array:
        (learnt,) = self._learnt
        return learnt.relative_position_bias_table


def turn_halves(x: mx.array, cos: mx.array, sin: mx.array) -> mx.array:
    """Channels i and i + d/2 of x ``(..., d)`` turned as a pair, by angles ``(..., d/2)``."""
    a, b = mx.split(x, 2, axis=-1)
    return mx.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def turn_neighbours(x: mx.array, cos: mx.array, sin: mx.array) -> mx.array:
    """Channels 2i and 2i + 1 of x ``(..., d)`` turned as a pair, by angles ``(..., d/2)``."""
    a, b = x[..., ::2], x[..., 1::2]
    return mx.stack([a * cos - b * sin, b * cos + a * sin], axis=-1).reshape(x.shape)


POSITIONS = {
    "learnt": Positions,
    "rotary": Rotary,
    "mixed": Mixed,
    "relative": Relative,
    "relative_shared": RelativeShared,
}

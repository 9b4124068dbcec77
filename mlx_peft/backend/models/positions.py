"""Where the tokens of an image stand, and who is told."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from mlx_peft.backend.models.layers import spread
from mlx_peft.backend.models.tokens import Tokens
from mlx_peft.vit.architecture import Architecture


class Positions(nn.Module):
    """Learnt positions: added to the tokens before the blocks, and nothing of them in attention.

    Other positions are classes made from this one. Rotary ones override ``turned``, relative ones ``bias``; both find
    in ``tokens.indices`` where in the grid the patch tokens stand that are left, and in ``tokens.places`` which tokens
    have no place in it.
    """

    def __init__(self, architecture: Architecture):
        super().__init__()
        self.of_patches = architecture.no_embed_class

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

    def turned(self, x: mx.array, tokens: Tokens) -> mx.array:
        """Queries or keys ``(batch, heads, tokens, d)`` as attention compares them: x itself."""
        return x

    def bias(self, attention: nn.Module, tokens: Tokens, queries: Tokens) -> mx.array | None:
        """What is added to attention's scores, to be broadcast over ``(batch, heads, queries, tokens)``: nothing.

        Args:
            attention: which may have parameters for it.
            tokens, queries: the tokens that are asked, and those that ask.
        """
        return None


POSITIONS = {"learnt": Positions}

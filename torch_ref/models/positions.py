"""Where the tokens of an image stand, and who is told."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mlx_peft.vit.architecture import Architecture
from torch_ref.models.tokens import Tokens


class Positions(nn.Module):
    """Learnt positions: added to the tokens before the blocks, and nothing of them in attention.

    Other positions are classes made from this one. Rotary ones override ``turned``, relative ones ``bias``; both find
    in ``tokens.indices`` where in the grid the patch tokens stand that are left, and in ``tokens.places`` which tokens
    have no place in it.
    """

    def __init__(self, architecture: Architecture):
        super().__init__()
        self.of_patches = architecture.no_embed_class

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

    def turned(self, x: Tensor, tokens: Tokens) -> Tensor:
        """Queries or keys ``(batch, heads, tokens, d)`` as attention compares them: x itself."""
        return x

    def bias(self, attention: nn.Module, tokens: Tokens, queries: Tokens) -> Tensor | None:
        """What is added to attention's scores, to be broadcast over ``(batch, heads, queries, tokens)``: nothing.

        Args:
            attention: which may have parameters for it.
            tokens, queries: the tokens that are asked, and those that ask.
        """
        return None


POSITIONS = {"learnt": Positions}

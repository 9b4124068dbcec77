"""What stands between attention and MLP, where there may be fewer tokens."""

from __future__ import annotations

from torch import nn

from torch_ref.models.attention import Attended
from torch_ref.models.tokens import Tokens


class Reducer(nn.Module):
    """The identity. A block's ``reducer`` may be another, made from this one, that drops or merges patch tokens.

    It gives ``tokens.gathered`` or ``tokens.reduced``, which keep all protected tokens, and the numbers of tokens that
    it gives depend on numbers of tokens alone: a compiled step has one shape. Where patches do not come out of the
    block, ``tokens`` has none.
    """

    def forward(self, tokens: Tokens, attended: Attended) -> Tokens:
        return tokens

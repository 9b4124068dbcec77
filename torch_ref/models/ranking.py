"""An order of patch tokens that both backends find: by a score, and among equal scores by place."""

from __future__ import annotations

import torch
from torch import Tensor

from mlx_peft.vit.places import PATCH
from torch_ref.models.attention import Attended

GRAIN = 2.0**-14
"""Scores are rounded to multiples of it: those of equal tokens differ by less between frameworks, and are equal so."""


def ranked(scores: Tensor) -> Tensor:
    """The places ``(batch, n)`` of float32 scores of about 1, the highest first; those that round alike in their order.

    Without a gradient.
    """
    return torch.argsort(-rounded(scores.detach()), dim=1, stable=True)


def rounded(scores: Tensor) -> Tensor:
    """In multiples of GRAIN."""
    return torch.round(scores / GRAIN) * GRAIN


def attention_of_class(attended: Attended) -> Tensor:
    """How much of each patch token the class token took, ``(batch, patches)``: the mean over the heads, in float32."""
    exactly = attended._replace(q=attended.q.float(), k=attended.k.float())
    row = exactly.probabilities(attended.asking.span("class"))
    return row[:, :, 0, attended.asked.span(PATCH)].mean(dim=1)


def attentive(attended: Attended, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of the patch tokens the ``count`` of which the class token took most, in their order, and the others, most first.

    Returns with both how much it took of each, see ``attention_of_class``.
    """
    taken = attention_of_class(attended)
    order = ranked(taken * len(attended.asked))  # of each 1, where of all alike is taken
    return order[:, :count].sort(dim=1).values, order[:, count:], taken

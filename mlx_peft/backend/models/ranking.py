"""An order of patch tokens that both backends find: by a score, and among equal scores by place."""

from __future__ import annotations

import mlx.core as mx

from mlx_peft.backend.models.attention import Attended
from mlx_peft.vit.places import PATCH

GRAIN = 2.0**-14
"""Scores are rounded to multiples of it: those of equal tokens differ by less between frameworks, and are equal so."""


def ranked(scores: mx.array) -> mx.array:
    """The places ``(batch, n)`` of float32 scores of about 1, the highest first; those that round alike in their order.

    Without a gradient.
    """
    return mx.argsort(-rounded(mx.stop_gradient(scores)), axis=1)  # a merge sort, which is stable


def rounded(scores: mx.array) -> mx.array:
    """In multiples of GRAIN."""
    return mx.round(scores / GRAIN) * GRAIN


def attention_of_class(attended: Attended) -> mx.array:
    """How much of each patch token the class token took, ``(batch, patches)``: the mean over the heads, in float32."""
    exactly = attended._replace(q=attended.q.astype(mx.float32), k=attended.k.astype(mx.float32))
    row = exactly.probabilities(attended.asking.span("class"))
    return row[:, :, 0, attended.asked.span(PATCH)].mean(axis=1)


def attentive(attended: Attended, count: int) -> tuple[mx.array, mx.array, mx.array]:
    """Of the patch tokens the ``count`` of which the class token took most, in their order, and the others, most first.

    Returns with both how much it took of each, see ``attention_of_class``.
    """
    taken = attention_of_class(attended)
    order = ranked(taken * len(attended.asked))  # of each 1, where of all alike is taken
    return mx.sort(order[:, :count], axis=1), order[:, count:], taken

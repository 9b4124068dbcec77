"""How much each patch counts in what a model's heads read: attention followed from block to block.

A map R ``(tokens, patches)`` says how much of each patch each token holds: at first a patch token is its own patch, and
the others hold none. A block whose queries take A ``(queries, tokens)`` of the tokens and keep themselves makes
R <- a R + b A R of it; where a reducer leaves M x of its tokens x, R <- M R. What is read at the end is read from R as
the heads read it: the class token's row, the mean of it and of the distillation token's with two heads, the mean over
the tokens that are averaged, each by its size, or the row that the pooling's query takes.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from mlx_peft.vit.attention import Attention, BlockAttention, Explanation
from mlx_peft.vit.places import PATCH, Kind, Places

Took = Callable[[Attention], np.ndarray]
"""b A of an attention, ``(batch, queries, tokens)``."""


def rollout(explanation: Explanation) -> np.ndarray:
    """Attention rollout: R <- (I + mean_h(A)) R / 2.

    What class tokens, registers and prompts keep of themselves is no patch's and is left out: a map sums to 1 only
    where there are none of them, and to less otherwise.

    Abnar and Zuidema 2020 (arXiv 2005.00928), section 3. Returns float64 ``(batch, patches)``, patches row by row.
    """
    there = _followed(explanation, 0.5, lambda attention: _mean_of_heads(attention) / 2)[-1]
    return _read(explanation, there, _mean_of_heads)


def gradient_weighted(explanation: Explanation) -> np.ndarray:
    """Attention that speaks for a class: R <- R + mean_h(max(dy/dA * A, 0)) R, y being the class's logit.

    Chefer et al. 2021 (arXiv 2103.15679), section 3, equations 5 and 6. Returns as ``rollout``.
    """
    return _read(explanation, _followed(explanation, 1.0, _in_favour)[-1], _in_favour)


def taken(explanation: Explanation) -> list[np.ndarray]:
    """Of each block: how much of each patch the class token took there, or, without one, the mean of the patch tokens.

    A mean over the heads, ``(batch, patches)``; what a token got that holds several patches is theirs by what it holds.
    """
    kind: Kind = "class" if explanation.architecture.class_token else PATCH
    found = []
    for block, (held, through) in zip(explanation.blocks, holdings(explanation), strict=True):
        row = _mean_of_heads(block)[:, block.asking.span(kind)].mean(1, keepdims=True)
        shares = held[:, :through] / np.maximum(held[:, :through].sum(2, keepdims=True), np.finfo(float).tiny)
        found.append((row @ shares)[:, 0])
    return found


def holdings(explanation: Explanation) -> list[tuple[np.ndarray, int]]:
    """Which patches each token holds as it comes to each block, and how many of the tokens go through the block.

    R with a = 1 and b = 0, float64 ``(batch, tokens, patches)``; the tokens behind that number are carried around it.
    """
    held = _followed(explanation, 1.0, None)
    return [(before, len(block.asked)) for block, before in zip(explanation.blocks, held, strict=False)]


def _followed(explanation: Explanation, kept: float, took: Took | None) -> list[np.ndarray]:
    """R as it comes into each block, the prompts that enter there among its rows, and as it comes out of the last."""
    batch, places = len(explanation.logits), explanation.architecture.places
    there = np.zeros((batch, len(places), places.count(PATCH)))
    there[:, places.span(PATCH)] = np.eye(places.count(PATCH))
    found = []
    for block in explanation.blocks:
        there = _entered(there, places, block.asked)
        found.append(there)
        through, aside = np.split(there, [len(block.asked)], axis=1)
        new = kept * _rows(through, block.asked, block.asking)
        if took is not None:
            new += took(block) @ through
        there = np.concatenate([new, aside], axis=1)
        if block.reduction is not None:
            there = block.reduction @ there
        places = block.left
    return [*found, there]


def _entered(there: np.ndarray, before: Places, now: Places) -> np.ndarray:
    """R with a row of zeros for each token that enters at a block: it holds no patch."""
    batch, _, patches = there.shape
    parts = [
        there[:, before.span(kind)] if kind in before.kinds else np.zeros((batch, count, patches))
        for kind, count in now.runs
    ]
    return np.concatenate([*parts, there[:, len(before) :]], axis=1)


def _rows(there: np.ndarray, places: Places, some: Places) -> np.ndarray:
    """The rows of some of the tokens."""
    return np.concatenate([there[:, span] for span in places.spans(some.kinds)], axis=1)


def _mean_of_heads(attention: Attention) -> np.ndarray:
    return np.asarray(attention.probabilities.astype(np.float64).mean(1))


def _in_favour(attention: Attention) -> np.ndarray:
    weighted = attention.gradients.astype(np.float64) * attention.probabilities
    return np.asarray(np.maximum(weighted, 0).mean(1))


def _read(explanation: Explanation, there: np.ndarray, took: Took) -> np.ndarray:
    """The row of R that the heads read, ``(batch, patches)``."""
    how, last, pool = explanation.architecture.global_pool, explanation.blocks[-1], explanation.pool
    if pool is not None:
        return np.asarray((took(pool) @ _rows(there, last.left, pool.asked))[:, 0])
    special: tuple[Kind, ...] = explanation.architecture.kinds_read or ("class",)
    means = [] if how == "avg" else [there[:, last.left.span(kind)].mean(1) for kind in special]
    if how != "token":
        means.append(_averaged(there, last, whole=explanation.architecture.pool_include_prefix))
    return np.asarray(np.mean(means, axis=0))


def _averaged(there: np.ndarray, last: BlockAttention, *, whole: bool) -> np.ndarray:
    """The mean of the rows that are averaged, each by its token's size."""
    places = last.left if whole else last.left.only((PATCH,))
    sizes = np.ones((len(there), len(places)))
    if last.sizes is not None:
        sizes[:, places.span(PATCH)] = last.sizes
    shares = sizes / sizes.sum(1, keepdims=True)
    return np.asarray((shares[:, None] @ _rows(there, last.left, places))[:, 0])

"""The matrix products of a ViT, counted from shapes: what a step, or an answer, cannot do without.

Each is (times, batch, m, k, n): so often ``(batch, m, k) @ (batch, k, n)``.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from mlx_peft.config.tokens import ReducerConfig
from mlx_peft.vit.architecture import Architecture
from mlx_peft.vit.places import PATCH

Product = tuple[int, int, int, int, int]


class Rows(NamedTuple):
    """How many tokens of an image a block computes with: those that are asked, that ask, and that its MLP takes."""

    asked: int
    asking: int
    fed: int


def rows(architecture: Architecture, reducer: ReducerConfig | None = None) -> list[Rows]:
    """Of each block. Of the last one, what the heads do not read is not computed."""
    special = architecture.num_prefix_tokens
    patches = architecture.places.count(PATCH)
    left = [patches] * architecture.depth if reducer is None else reducer.left(architecture)
    found, asked = [], len(architecture.places)
    for number, behind in enumerate(left):
        read = architecture.tokens_read if number == architecture.depth - 1 else None
        fed = special + behind if read is None else read
        found.append(Rows(asked, asked if read is None else read, fed))
        asked = fed
    return found


def forward(architecture: Architecture, batch: int, reducer: ReducerConfig | None = None) -> list[Product]:
    """Of an answer: embedding and blocks; neither what pools and classifies behind them, nor the reducer's own."""
    a = architecture
    found: list[Product] = [(1, 1, batch * a.grid_size**2, 3 * a.patch_size**2, a.embed_dim)]
    for asked, asking, fed in rows(a, reducer):
        found += [
            (1, 1, batch * asked, a.embed_dim, 3 * a.embed_dim),
            *_attention(a, batch, asking, asked, times=1),
            *((1, 1, batch * height, *sides) for height, sides in _layers(a, asking, fed)),
        ]
    return found


def step(architecture: Architecture, batch: int, reducer: ReducerConfig | None = None) -> list[Product]:
    """Of a training step over frozen weights: forward, and back to the activations; the adapter's own are not counted.

    Nothing goes back through the first block's q, k and v, below which nothing is trained.
    """
    a = architecture
    found = forward(a, batch, reducer)
    for number, (asked, asking, fed) in enumerate(rows(a, reducer)):
        if number:
            found.append((1, 1, batch * asked, 3 * a.embed_dim, a.embed_dim))
        found += _attention(a, batch, asking, asked, times=2)
        found += [(1, 1, batch * height, out, wide) for height, (wide, out) in _layers(a, asking, fed)]
    return found


def flops(products: Iterable[Product]) -> int:
    """Operations: a multiplication and an addition are two."""
    return sum(2 * times * batch * m * k * n for times, batch, m, k, n in products)


def _attention(a: Architecture, batch: int, asking: int, asked: int, times: int) -> list[Product]:
    """q k^T and p v, once forward; on the way back dp, dv, dq and dk, which are as large: each of the two twice."""
    heads, width = batch * a.num_heads, a.embed_dim // a.num_heads
    return [(times, heads, asking, width, asked), (times, heads, asking, asked, width)]


def _layers(a: Architecture, asking: int, fed: int) -> list[tuple[int, tuple[int, int]]]:
    """proj, fc1 and fc2: how many tokens each takes, and from how many features to how many."""
    hidden = a.hidden_dim
    inner = hidden // 2 if a.mlp_layer == "swiglu_packed" else hidden
    wide = 2 * hidden if a.mlp_layer == "swiglu" else hidden
    return [(asking, (a.embed_dim, a.embed_dim)), (fed, (a.embed_dim, wide)), (fed, (inner, a.embed_dim))]

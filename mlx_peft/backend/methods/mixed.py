"""A network in which each row of a batch has an adapter of its own: its layers ask at each call what the rows have."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import mlx.core as mx
import mlx.nn as nn

from mlx_peft.adaptation.terms import THIRDS, Entering
from mlx_peft.backend.methods.gathering import Held
from mlx_peft.backend.models.gelu import gelu
from mlx_peft.backend.models.positions import Positions
from mlx_peft.backend.models.tokens import Tokens
from mlx_peft.vit.places import Kinds

OF_THIRDS = frozenset(f"B{third}" for third in THIRDS)
"""The names of terms of a third of a layer's outputs; each has its A or G."""

Act = Callable[[mx.array], mx.array]
"""An activation."""

_rows: ContextVar[tuple[Held, frozenset[str]]] = ContextVar("rows", default=({}, frozenset()))


@contextmanager
def mixing(terms: Held, prompts: Sequence[Entering] = ()) -> Iterator[None]:
    """Within it, the rows of a batch have these terms; outside of any, none. Each thread has its own.

    Args:
        terms: of all rows, in their order.
        prompts: at which blocks they enter and leave, in all rows alike.
    """
    token = _rows.set((terms, frozenset(at.block for at in prompts if at.leave)))
    try:
        yield
    finally:
        _rows.reset(token)


class Mixed(nn.Module):
    """A layer or a block of which the rows of a batch each have their own.

    Args:
        base_layer: what all have; it is kept as ``base_layer``.
        path: where it stands in the model.
    """

    def __init__(self, base_layer: nn.Module, path: str):
        super().__init__()
        self.base_layer = base_layer
        self.path = path


class MixedLayer(Mixed):
    """y = gain * (layer(into * x) + n(x) * weight + (x A + g(x) G) B) + shift, of each row its own.

    The layer is a linear one, the patch projection or a norm; the terms are those of ``mlx_peft.adaptation.terms``.

    An input that all images share, one row, gets a row for each. Products are taken in the dtype of x.
    """

    def __call__(self, x: mx.array) -> mx.array:
        own = _rows.get()[0].get(self.path)
        if own is None:
            return self.base_layer(x)
        y = self.base_layer((x * beside(own["into"], x)).astype(x.dtype) if "into" in own else x)
        y = plus(y, x, own)
        if not own.keys().isdisjoint(OF_THIRDS):
            parts = zip(mx.split(y, len(THIRDS), axis=-1), THIRDS, strict=True)
            y = mx.concatenate([plus(part, x, own, third) for part, third in parts], axis=-1)
        if "weight" in own:
            y = y + self.base_layer.normed(x) * beside(own["weight"], y)
        if "gain" in own:
            y = y * beside(own["gain"], y)
        if "shift" in own:
            y = y + beside(own["shift"], y)
        return y.astype(x.dtype)


class MixedBlock(Mixed):
    """A block that prompts of the rows' own enter or leave, with bottlenecks of theirs beside its MLP and behind it."""

    def __call__(self, tokens: Tokens, positions: Positions, queries: Kinds | None = None) -> Tokens:
        terms, left = _rows.get()
        own, dtype = terms.get(self.path, {}), tokens.x.dtype
        if "prompts" in own:
            prompts = own["prompts"].astype(dtype)
            tokens = tokens.inserted("prompt", mx.broadcast_to(prompts, (tokens.x.shape[0], *prompts.shape[-2:])))
        if self.path in left and queries is None:
            queries = tokens.places.without("prompt")
        if "down" in own:
            tokens = self.base_layer.attend(tokens, positions, queries)
            read = self.base_layer.read_by_mlp(tokens.x)
            tokens = tokens.fed(self.base_layer.feed(read))
            tokens = tokens.holding(tokens.x + bottleneck(read, own, nn.relu))
        else:
            tokens = self.base_layer(tokens, positions, queries)
        if "after_down" in own:
            tokens = tokens.holding(tokens.x + bottleneck(tokens.x, own, gelu, "after_"))
        return tokens


class MixedBranch(Mixed):
    """What a block's attention, or its MLP, ends in, with the rows' own bottlenecks behind it."""

    def __call__(self, x: mx.array) -> mx.array:
        y, own = self.base_layer(x), _rows.get()[0].get(self.path)
        return y if own is None else y + bottleneck(y, own, gelu)


def bottleneck(x: mx.array, own: Mapping[str, mx.array], act: Act, place: str = "") -> mx.array:
    """act(x down + down_bias) up + up_bias, in the dtype of x, of the terms whose names begin with the place."""
    down, down_bias, up, up_bias = (own[place + name] for name in ("down", "down_bias", "up", "up_bias"))
    inner = act(x @ down.astype(x.dtype) + beside(down_bias, x).astype(x.dtype))
    return inner @ up.astype(x.dtype) + beside(up_bias, x).astype(x.dtype)


def plus(y: mx.array, x: mx.array, own: Mapping[str, mx.array], ending: str = "") -> mx.array:
    """y + (x A + g(x) G) B, of the terms with this ending; where rows have A or G, B has rows for the longer."""
    for name in ("A", "G"):
        if (A := own.get(name + ending)) is not None:
            inputs = x if A.shape[-2] == x.shape[-1] else x.reshape(*x.shape[:-1], A.shape[-2], -1).sum(axis=-1)
            B = own[f"B{ending}"][..., : A.shape[-1], :].astype(x.dtype)
            y = mx.addmm(y, inputs @ A.astype(x.dtype), B)
    return y


def beside(vectors: mx.array, x: mx.array) -> mx.array:
    """A vector, or one a row, ``(batch, width)``, with as many axes as x, ``(batch, ..., width)``."""
    return vectors if vectors.ndim == 1 else vectors.reshape(len(vectors), *(1,) * (x.ndim - 2), -1)

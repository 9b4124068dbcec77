"""What the reducers keep, and how many tokens they leave."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from mlx_peft.adaptation.estimate.layers import Reducer, Tokens
from mlx_peft.adaptation.estimate.network import Network
from mlx_peft.adaptation.estimate.tape import FLOAT32, Array, Shape, Store
from mlx_peft.config.tokens import ROUTERS, DyT, EViT, ReducerConfig, SkipViT, ToMe
from mlx_peft.vit.places import PATCH, Places

PLACE = 8
"""Bytes of the number of a token."""


def reducer(config: ReducerConfig | None) -> Reducer | None:
    """What stands between attention and MLP of each block; None: nothing."""
    return None if config is None else REDUCERS[type(config)](config)


class _ToMe:
    """Pairs of tokens become one."""

    def __init__(self, config: ToMe) -> None:
        self.config = config

    def __call__(self, net: Network, number: int, tokens: Tokens, q: Array, k: Array, asking: Places) -> Tokens:
        tape, (batch, every, dim) = net.tape, tokens.x.shape
        count = tokens.places.count(PATCH)
        r = min(self.config.r, count // 2)
        if not r:
            return tokens
        pairs = batch * math.ceil(count / 2) * (count // 2) * FLOAT32
        left = every - r
        goes, shares = numbers((batch, every), PLACE), numbers((batch, every), FLOAT32)
        x = tape.run([tokens.x], (batch, left, dim), keeps=[goes, shares], beside=pairs)
        sizes = numbers((batch, 1, 1, left), FLOAT32)
        return replace(tokens, x=x, places=tokens.places.resized(PATCH, count - r), sizes=sizes)


class _EViT:
    """What the class token attends to least becomes one token."""

    def __init__(self, config: EViT) -> None:
        self.config = config

    def __call__(self, net: Network, number: int, tokens: Tokens, q: Array, k: Array, asking: Places) -> Tokens:
        count = tokens.places.count(PATCH)
        stay = self.config.kept(count)
        if number not in self.config.blocks or stay == count:
            return tokens
        tape, (batch, _, dim) = net.tape, tokens.x.shape
        taken = of_class(net, q, k)
        kept, others = rows(net, tokens.x, stay), rows(net, tokens.x, count - stay)
        fused = tape.matmul(tape.view(taken, (batch, 1, count - stay)), others)
        return left(net, tokens, [kept, tape.view(fused, (batch, 1, dim))])


class _SkipViT:
    """Some tokens skip the middle blocks."""

    def __init__(self, config: SkipViT) -> None:
        self.config = config

    def __call__(self, net: Network, number: int, tokens: Tokens, q: Array, k: Array, asking: Places) -> Tokens:
        count = tokens.places.count(PATCH)
        if number == self.config.start and (stay := self.config.kept(count)) < count:
            of_class(net, q, k)
            kept, aside = rows(net, tokens.x, stay), rows(net, tokens.x, count - stay)
            return replace(left(net, tokens, [kept]), aside=aside)
        if number == self.config.to and tokens.aside is not None:
            every = net.tape.joined([rows(net, tokens.x, count), tokens.aside], axis=1)
            return replace(left(net, tokens, [rows(net, every, every.shape[1])]), aside=None)
        return tokens


class _DyT:
    """Routers say which tokens go past the MLP."""

    def __init__(self, config: DyT) -> None:
        self.config = config

    def __call__(self, net: Network, number: int, tokens: Tokens, q: Array, k: Array, asking: Places) -> Tokens:
        if not (count := tokens.places.count(PATCH)):
            return tokens
        tape, (batch, every, dim) = net.tape, tokens.x.shape
        weight = net.parameter(f"{ROUTERS}.weight")
        patches = tape.run([tape.view(tokens.x, (batch, count, dim))], (batch, count, dim), item=FLOAT32)
        scores = tape.product(patches, tape.view(weight, (1, dim)))
        slope = tape.softmax(tape.softmax(scores))
        return replace(tokens, gate=tape.run([slope], (batch, every, 1), item=tokens.x.item))


REDUCERS: Mapping[type[ReducerConfig], Callable[[Any], Reducer]] = {
    ToMe: _ToMe,
    EViT: _EViT,
    SkipViT: _SkipViT,
    DyT: _DyT,
}
"""The registry, by the class of a reducer's configuration."""


def numbers(shape: Shape, item: int) -> Array:
    """Numbers that no gradient goes to."""
    return Array(shape, item, Store(math.prod(shape) * item))


def rows(net: Network, x: Array, count: int) -> Array:
    """So many of the tokens, copied."""
    return net.tape.run([x], (x.shape[0], count, x.width), keeps=[numbers((x.shape[0], count), PLACE)])


def left(net: Network, tokens: Tokens, patches: list[Array]) -> Tokens:
    """Tokens with other patches in the place of theirs."""
    batch, _, dim = tokens.x.shape
    count, special = sum(part.shape[1] for part in patches), len(tokens.places) - tokens.places.count(PATCH)
    before = [net.tape.view(tokens.x, (batch, special, dim))] if special else []
    places = tokens.places.resized(PATCH, count)
    return replace(tokens, x=net.tape.joined([*before, *patches], axis=1), places=places)


def of_class(net: Network, q: Array, k: Array) -> Array:
    """How much of each token the class token took, in float32."""
    tape, (batch, heads, _, width) = net.tape, q.shape
    asks = tape.cast(tape.view(q, (batch, heads, 1, width)), FLOAT32)
    scores = tape.matmul(asks, tape.view(tape.run([k], k.shape, item=FLOAT32), (batch, heads, width, k.shape[2])))
    return tape.run([tape.softmax(scores)], (batch, k.shape[2]))

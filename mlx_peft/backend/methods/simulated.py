"""A plain model with something before each operand of its blocks' products: a quantiser, or one who looks on."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import partial

import mlx.core as mx

from mlx_peft.backend.methods.targets import find, replace
from mlx_peft.backend.models.attention import attend
from mlx_peft.backend.models.vit import VisionTransformer
from mlx_peft.backend.quant.simulated import Attend, Before, Preceded, quantize
from mlx_peft.codes.quantizers import Quantizer
from mlx_peft.config.simulation import ATTENTION, layers, points


def insert(model: VisionTransformer, before: Mapping[str, Before]) -> None:
    """Puts ``before[point]`` before the operand of each point that it has; the points are ``config.simulation.points``.

    Where it has none of a block's attention, that stays one operation, which need not form its probabilities.
    """
    for site in layers(model.architecture):
        if site.path in before:
            replace(model, site.path, Preceded(find(model, site.path), before[site.path]))
    for index, block in enumerate(model.blocks):
        own = {operand: f"blocks.{index}.attn.{operand}" for operand in ATTENTION}
        if not before.keys().isdisjoint(own.values()):
            block.attn.attend = Attend({operand: before.get(point, unchanged) for operand, point in own.items()})


def remove(model: VisionTransformer) -> None:
    """Takes out what ``insert`` put in."""
    for site in layers(model.architecture):
        if isinstance(layer := find(model, site.path), Preceded):
            replace(model, site.path, layer.base_layer)
    for block in model.blocks:
        block.attn.attend = attend


def simulate(model: VisionTransformer, quantizers: Mapping[str, Quantizer]) -> None:
    """Quantises the operand of each point that has a quantiser."""
    before = {point: partial(quantize, quantizer) for point, quantizer in quantizers.items()}
    insert(model, {point: before.get(point, unchanged) for point in points(model.architecture)})


def record(
    model: VisionTransformer, x: mx.array, observe: Callable[[str, mx.array], object], at: Collection[str] | None = None
) -> None:
    """Takes a model's input through it, and shows each operand as it comes by; the model is not simulated yet.

    ``at``: the points that are shown; None: all.
    """
    every = points(model.architecture) if at is None else at
    insert(model, {point: partial(shown, observe, point) for point in every})
    try:
        model(x)
    finally:
        remove(model)


def unchanged(x: mx.array) -> mx.array:
    """x."""
    return x


def shown(observe: Callable[[str, mx.array], object], point: str, x: mx.array) -> mx.array:
    """x, once it was shown."""
    observe(point, x)
    return x

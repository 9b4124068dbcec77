"""What an experiment holds in memory, from its configuration alone: a lower bound, part by part.

What both backends must hold at once is counted, and no more: copies that an allocator or a compiler may avoid, buffers,
caches and the libraries themselves are not, so that what does not fit by this count fits nowhere.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

from mlx_peft.adaptation.adapter import adapter_shapes
from mlx_peft.adaptation.prefix import frozen_prefix
from mlx_peft.config.quantization import Quantization
from mlx_peft.config.schema import AdamW, Experiment
from mlx_peft.config.tokens import ReducerConfig
from mlx_peft.vit.architecture import Architecture
from mlx_peft.vit.parameters import is_head
from mlx_peft.vit.places import PATCH
from mlx_peft.vit.shapes import shapes

BYTES = {"float32": 4, "tf32": 4, "bfloat16": 2, "float16": 2}

Parts = dict[str, int]
"""Numbers of bytes, by what the memory is used for."""


def count(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """How many numbers tensors of these shapes have."""
    return sum(math.prod(shape) for shape in shapes.values())


def weights(
    architecture: Architecture, num_classes: int, precision: str = "float32", quantization: Quantization | None = None
) -> int:
    """Bytes of a model without a method: the parameters in their precision, or the words of codes with their scales."""
    unquantised = shapes(architecture, num_classes)
    if quantization is None:
        return BYTES[precision] * count(unquantised)
    stored = quantization.stored(architecture, unquantised)
    words = {f"{site.path}.weight" for site in quantization.sites(architecture)}
    return sum((4 if name in words else BYTES[precision]) * math.prod(shape) for name, shape in stored.items())


def tokens(architecture: Architecture, reducer: ReducerConfig | None) -> tuple[list[int], list[int]]:
    """How many tokens enter the attention of each block, and its MLP."""
    every, patches = len(architecture.places), architecture.places.count(PATCH)
    if reducer is None:
        return [every] * architecture.depth, [every] * architecture.depth
    fed = [every - patches + left for left in reducer.left(architecture)]
    return [every, *fed[:-1]], fed


class Answering(NamedTuple):
    """How a model is asked: images at once, in which precision, and whether attention's probabilities are held whole.

    A part of attention at a time needs no room to speak of; ``(batch, heads, tokens, tokens)`` may need more than all
    the rest.
    """

    batch: int
    precision: str = "float32"
    forms_attention: bool = False


def answering(
    architecture: Architecture, num_classes: int, how: Answering, quantization: Quantization | None = None
) -> Parts:
    """What answering a batch holds: the weights, and of one block its input beside q, k and v, or the probabilities."""
    rows, size = how.batch * len(architecture.places), BYTES[how.precision]
    return {
        "weights": weights(architecture, num_classes, how.precision, quantization),
        "activations": size * rows * 4 * architecture.embed_dim,
        "attention": size * how.batch * _probabilities(architecture) if how.forms_attention else 0,
        "logits": 4 * how.batch * num_classes,
    }


def explaining(
    architecture: Architecture,
    num_classes: int,
    quantization: Quantization | None = None,
    reducer: ReducerConfig | None = None,
) -> Parts:
    """What looking at one image holds, in float32: beside the weights, attention's probabilities in every block, with
    their gradients and a change of them, and what the backward pass keeps of each block, as in ``training``."""
    attended, fed = tokens(architecture, reducer)
    return {
        "weights": weights(architecture, num_classes, quantization=quantization),
        "activations": 4 * (3 * architecture.embed_dim * sum(attended[:-1]) + architecture.hidden_dim * sum(fed[:-1])),
        "attention": 3 * 4 * sum(_probabilities(architecture, count) for count in attended[:-1]),
        "logits": 4 * num_classes,
    }


def training(
    experiment: Experiment,
    architecture: Architecture,
    num_classes: int,
    *,
    batch: int,
    forms_attention: bool = False,
    quantization: Quantization | None = None,
) -> Parts:
    """What a step of training holds: weights, what is trained and its moments, what the backward pass needs.

    Of each block that the gradient goes through whole these are q, k and v, the MLP's hidden layer, and attention's
    probabilities where they are held whole; with gradient checkpointing the blocks' inputs, and one's probabilities.

    Args:
        batch: images of a step, which ``train.accumulate`` divides.
        quantization: of the base.
    """
    method, train = experiment.method, experiment.train
    held = adapter_shapes(method, architecture, num_classes, quantization, experiment.qat, experiment.tokens)
    own = shapes(architecture, num_classes)
    trained = {*method.selected(architecture), *filter(is_head, own)}
    trained |= {name for name in held if name not in own and not method.keeps(name)}
    prefix = frozen_prefix(architecture, 0.0, {**own, **held}, trained, None, experiment.tokens)
    # The first of them may be met by the gradient at its end alone, and of the last only what is read goes through.
    through = 0 if method.beside else max(architecture.depth - (0 if prefix is None else prefix.end) - 1, 0)
    images, size = -(-batch // train.accumulate), BYTES[train.precision]
    attended, fed = tokens(architecture, experiment.tokens)
    blocks = range(architecture.depth - 1 - through, architecture.depth - 1)
    whole = blocks[:1] if train.gradient_checkpointing else blocks[1:]
    kept = size * images * architecture.embed_dim * sum(attended[block] for block in blocks)
    if train.gradient_checkpointing:
        activations = kept
    else:
        activations = 3 * kept + size * images * architecture.hidden_dim * sum(fed[block] for block in whole)
    formed = sum(_probabilities(architecture, attended[block]) for block in whole) or _probabilities(architecture)
    attention = size * images * formed if forms_attention else 0
    moments = 2 if isinstance(train.optimizer, AdamW) else int(train.optimizer.momentum > 0)
    return {
        "weights": weights(architecture, num_classes, train.precision, quantization),
        "adapter": 4 * count({name: shape for name, shape in held.items() if name not in own}),
        "optimizer": 4 * moments * count({name: held[name] for name in trained}),
        # The latter in any forward pass.
        "activations": max(activations, size * images * attended[0] * 4 * architecture.embed_dim),
        "attention": attention,
        "logits": 4 * images * num_classes,
    }


def _probabilities(architecture: Architecture, tokens: int | None = None) -> int:
    """Numbers of one image's attention in one block, or in the only one, where no more tokens ask than are read.

    ``tokens`` enter it; None: all there are.
    """
    tokens = tokens or len(architecture.places)
    asking = tokens if architecture.depth > 1 else architecture.tokens_read or tokens
    return architecture.num_heads * asking * tokens

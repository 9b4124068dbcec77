"""What an adapter holds: the tensors that are trained or kept, by name and shape, known without a model."""

from __future__ import annotations

from collections.abc import Callable, Collection
from math import prod

from mlx_peft.config.methods import MethodConfig
from mlx_peft.config.quantization import QAT, Quantization
from mlx_peft.config.tokens import ReducerConfig
from mlx_peft.core.border import Tensors
from mlx_peft.vit.architecture import Architecture
from mlx_peft.vit.parameters import is_head, last
from mlx_peft.vit.shapes import Shapes, shapes


def adapter_shapes(
    method: MethodConfig,
    architecture: Architecture,
    num_classes: int,
    quantization: Quantization | None = None,
    qat: QAT | None = None,
    tokens: ReducerConfig | None = None,
) -> Shapes:
    """The tensors of a model's adapter: what the method trains and keeps, scales of codes, routers, the heads.

    Args:
        quantization: of the base.
        qat: the codes that are trained through.
        tokens: how the model has fewer of them.

    Raises:
        UserError: where the method cannot be put on such a model.
    """
    method.check(architecture)
    method.check_quantization(architecture, quantization)
    own = shapes(architecture, num_classes)
    trained = {*method.selected(architecture), *filter(is_head, own)}
    found = {name: shape for name, shape in own.items() if name in trained}
    found |= method.added(architecture, quantization) | (qat.added(architecture) if qat else {})
    return found | (tokens.added(architecture) if tokens else {})


def trained_count(method: MethodConfig, architecture: Architecture, quantization: Quantization | None = None) -> int:
    """How many numbers a method trains, heads left out. Raises UserError where it cannot be put on such a model."""
    found = adapter_shapes(method, architecture, 1, quantization)
    return sum(prod(shape) for name, shape in found.items() if not is_head(name) and not method.keeps(name))


def required(method: MethodConfig, wanted: Shapes, held: Collection[str]) -> Shapes:
    """Which of ``adapter_shapes`` a file must have: all that it has, and all that the base does not say itself."""
    return {name: shape for name, shape in wanted.items() if name in held or last(name) not in method.implied}


def completed(method: MethodConfig, tensors: Tensors, fresh: Callable[[], Tensors]) -> Tensors:
    """An adapter's tensors, and where a file lacks what the base says itself, those of a ``fresh`` adapter on it."""
    if not method.implied:
        return tensors
    return {name: tensor for name, tensor in fresh().items() if last(name) in method.implied} | tensors

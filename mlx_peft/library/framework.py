"""What the library asks of a backend, and of a network: a module of the framework's own, for any training loop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from convert.base import Base
from mlx_peft.config.methods import Method, MethodConfig
from mlx_peft.config.quantization import QAT, Quantization
from mlx_peft.config.schema import Model
from mlx_peft.core.border import Tensors
from mlx_peft.vit.architecture import Architecture


class Network(Protocol):
    """A ViT as the framework's module, and what the library keeps with it."""

    architecture: Architecture
    quantization: Quantization | None
    method: Method | None
    head: Any
    """The classifier, whose weight is ``(classes, width)``."""
    description: Model
    """The name and the options that the model was asked for with."""
    base: Base
    """The description of its weights, without the weights themselves."""
    qat: QAT | None
    """The codes that its adapter is trained through; None for none."""
    adapter_names: tuple[str, ...]
    """The names of the tensors that its adapter consists of."""


AnyNetwork = TypeVar("AnyNetwork", bound=Network)


@dataclass(frozen=True)
class Framework(Generic[AnyNetwork]):
    """What a backend offers.

    Attributes:
        build: a network without weights, of an architecture and a number of classes.
        fill: puts a base's weights into it.
        apply: puts a method in place, from a seed, with the codes that are trained through. Raises UserError.
        remove: takes the method out.
        every: all parameters by name, in timm's layout.
        stored: those that an adapter is made of.
        load_adapter: sets those. Raises ValueError where names or shapes differ.
    """

    build: Callable[[Architecture, int], AnyNetwork]
    fill: Callable[[AnyNetwork, Base], None]
    apply: Callable[[AnyNetwork, MethodConfig, int, QAT | None], None]
    remove: Callable[[AnyNetwork], None]
    every: Callable[[AnyNetwork], Tensors]
    stored: Callable[[AnyNetwork], Tensors]
    load_adapter: Callable[[AnyNetwork, Tensors], None]

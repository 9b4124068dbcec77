"""What the library asks of a backend, and of a network: a module of the framework's own, for any training loop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import numpy as np

from convert.base import Base
from mlx_peft.config.methods import Method, MethodConfig
from mlx_peft.config.quantization import QAT, Quantization
from mlx_peft.config.schema import AdamW, Model, Precision
from mlx_peft.config.tokens import ReducerConfig
from mlx_peft.core.border import Parameters, Tensors
from mlx_peft.library.mixer import Mixer
from mlx_peft.library.program import Program
from mlx_peft.library.standing import Standing
from mlx_peft.vit.architecture import Architecture


class Network(Protocol):
    """A ViT as the framework's module, and what the library keeps with it."""

    architecture: Architecture
    quantization: Quantization | None
    method: Method | None
    tokens: ReducerConfig | None
    """How it has fewer of them; None: all of them."""
    standing: Standing
    """What its optimisers hold too, until a method is put in or taken out."""
    head: Any
    """The classifier, whose weight is ``(classes, width)``."""
    description: Model | None
    """The name and the options that the model was asked for with."""
    base: Base
    """The description of its weights, without the weights themselves; its digest is empty once they are others."""
    classes: tuple[str, ...]
    """Names of the head's rows; none where they are unknown."""
    qat: QAT | None
    """The codes that its adapter is trained through; None for none."""
    adapter_names: tuple[str, ...]
    """The names of the tensors that its adapter consists of."""

    def reduce(self, config: ReducerConfig | None, seed: int = 0) -> None:
        """Has reducers stand in its blocks. Raises UserError where the model cannot be reduced so."""


AnyNetwork = TypeVar("AnyNetwork", bound=Network)


@dataclass(frozen=True)
class Framework(Generic[AnyNetwork]):
    """What a backend offers.

    Attributes:
        build: a network without weights, of an architecture and a number of classes.
        fill: puts a base's weights into it.
        apply: puts a method in place, from a seed, with the codes that are trained through. Raises UserError.
        remove: takes the method out.
        merge: folds the method into plain layers, and returns those that were there. Raises UserError.
        unmerge: puts them back.
        every: all parameters by name, in timm's layout.
        stored: those that an adapter is made of.
        load_adapter: sets those. Raises ValueError where names or shapes differ.
        sizes: how many numbers each parameter that is trained has, by name.
        count: how many numbers are trained, and how many there are.
        prepare: uint8 images ``(batch, h, w, 3)`` as the network takes them, on its device.
        optimizer: of what is trained.
        mixer: the same network, which takes adapters' terms at each call.
        program: what answers alone, of a network as it is now, in a precision; None: the device's usual one.
        step: an update by a batch of uint8 images and their targets; see ``by_hand.step``.
    """

    build: Callable[[Architecture, int], AnyNetwork]
    fill: Callable[[AnyNetwork, Base], None]
    apply: Callable[[AnyNetwork, MethodConfig, int, QAT | None], None]
    remove: Callable[[AnyNetwork], None]
    merge: Callable[[AnyNetwork, bool], dict[str, Any]]
    unmerge: Callable[[AnyNetwork, dict[str, Any]], None]
    every: Callable[[AnyNetwork], Tensors]
    stored: Callable[[AnyNetwork], Tensors]
    load_adapter: Callable[[AnyNetwork, Tensors], None]
    sizes: Callable[[AnyNetwork], dict[str, int]]
    count: Callable[[AnyNetwork], Parameters]
    prepare: Callable[[AnyNetwork, np.ndarray], Any]
    optimizer: Callable[[AnyNetwork, AdamW], Any]
    step: Callable[[AnyNetwork, Any, np.ndarray, np.ndarray, float, float, int], float]
    mixer: Callable[[AnyNetwork], Mixer]
    program: Callable[[AnyNetwork, Precision | None], Program]

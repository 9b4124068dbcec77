"""What a backend gives the engine, and the one place where a backend's name is turned into code.

Everything that crosses this border is NumPy: images as uint8 ``(batch, height, width, 3)`` exactly as decoded, or in
their place the float32 features that the learner made of them (the dtype tells which); targets as the base's task has
them (``mlx_peft.tasks``); tensors by timm's names.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, SupportsFloat

import numpy as np

from convert.base import Base
from mlx_peft.adaptation.prefix import Prefix
from mlx_peft.codes.quantizers import Quantizer
from mlx_peft.config.schema import Experiment
from mlx_peft.core.border import Device, Parameters, Tensors
from mlx_peft.core.errors import UserError

__all__ = ["BACKENDS", "Backend", "Learner", "Parameters", "Tensors", "load_backend"]


class Learner(Protocol):
    """A model, its method and its optimiser, ready to train."""

    parameters: Parameters
    step: int
    """Optimiser steps begun; ``state`` holds it."""
    prefix: Prefix | None
    """The frozen part whose features may stand for images; None where there is no such part."""

    def features(self, images: np.ndarray) -> np.ndarray:
        """What the prefix makes of images: float32 ``(batch, *prefix.shape)``."""
        ...

    def train_step(
        self, images: np.ndarray, targets: np.ndarray, lr: float, *, weight: float | None = None, observe: bool = False
    ) -> SupportsFloat:
        """One optimiser step on a batch.

        Returns the loss that was differentiated: the sum over the rows divided by ``weight`` (None for what the
        targets add up to), and the method's penalty where it has one.
        Reading it with ``float`` waits for the step. With ``observe`` the step counts in the averages that ``scores``
        are made of, unless it was left out because its gradient overflowed.
        """
        ...

    def scores(self) -> Tensors:
        """How much each triplet matters, float32 ``(r,)`` by adapter: ``blocks.0.attn.qkv``, ``blocks.0.attn.qkv/q``.

        From averages over the steps that were observed (``state`` holds them); empty where the method keeps none.
        Waits for the last step.
        """
        ...

    def mask(self, keep: Mapping[str, Sequence[bool]]) -> None:
        """Sets to zero what makes a triplet count that is not kept; it may grow again in later steps.

        ``keep`` has the names and lengths of ``scores``. Waits for nothing, and the same object given again is not
        looked at again.
        """
        ...

    def logits(self, images: np.ndarray) -> np.ndarray:
        """Evaluation mode: float32 ``(batch, classes)``."""
        ...

    def loss_and_gradients(self, images: np.ndarray, targets: np.ndarray, scale: float = 1.0) -> tuple[float, Tensors]:
        """The loss of a batch in training mode, penalty and all, and its gradient for each trained parameter.

        Nothing is updated, and no dropout drawn. The loss is multiplied by ``scale`` before the backward pass, and the
        gradients are divided by it after: float16 has no numbers as small as some of theirs.
        """
        ...

    def adapter(self) -> Tensors:
        """What was trained, the head included, float32, by parameter name: ``blocks.0.attn.qkv.lora_A``."""
        ...

    def load_adapter(self, tensors: Tensors) -> None:
        """Sets what ``adapter`` returned. Raises ValueError where names or shapes differ."""
        ...

    def merged(self, dequantize: bool = False) -> Tensors:
        """timm's state dictionary, float32, with the method merged into it; a quantised base stays quantised.

        With ``dequantize`` the dictionary is a plain one. Raises UserError where the method cannot be merged, or not
        into a base that stays quantised.
        """
        ...

    def record(self, images: np.ndarray, observe: Callable[[str, np.ndarray], object]) -> None:
        """Shows what enters each product of the blocks, evaluation mode, float32: ``observe(point, operand)``.

        The points are those of ``config.simulation``; an operand is ``(batch, tokens, dim)`` or, inside attention,
        ``(batch, heads, tokens, ...)``. For a model that is not simulated yet.
        """
        ...

    def simulate(self, quantizers: Mapping[str, Quantizer]) -> None:
        """Rounds the operand of each point that has a quantiser, from here on. For a model without a method."""
        ...

    def state(self) -> Tensors:
        """All that an exact resume needs: trained parameters, optimiser slots, counters, loss scale."""
        ...

    def load_state(self, state: Tensors) -> None:
        """Sets what ``state`` returned, bit for bit. Raises ValueError where names or shapes differ.

        The scale of the loss, which half precision alone has, may be missing, and may be too much.
        """
        ...

    def peak_memory(self) -> int:
        """Bytes at the peak since the learner was built: the device's, or the process's on a CPU."""
        ...


class Backend(Protocol):
    """The module of a backend."""

    def build(self, experiment: Experiment, num_classes: int, base: Base) -> Learner: ...

    def computing(self) -> Device:
        """What it computes on."""
        ...

    def version(self) -> str:
        """The framework, its version and its device, for ``env.json``: ``mlx 0.32.4 (cpu)``."""
        ...


BACKENDS = {"mlx": "mlx_peft.backend.learner", "torch": "torch_ref.learner"}
INSTALL = {"mlx": "pip install mlx-peft", "torch": "pip install 'mlx-peft[torch]'"}


def load_backend(name: str) -> Backend:
    """The backend of a name. Raises UserError where its framework is not installed."""
    try:
        return importlib.import_module(BACKENDS[name])
    except ImportError as error:
        raise UserError(f"the {name} backend cannot be loaded ({error}); install it with: {INSTALL[name]}") from error

"""What is measured of whoever trains, for the checks alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, SupportsFloat

import numpy as np

from convert.base import Base
from mlx_peft.config.schema import Experiment, Precision
from mlx_peft.vit.architecture import Preprocessing


class Steps(Protocol):
    """What takes training steps: a trainer, or another library's model that is timed beside ours."""

    def train_step(self, images: np.ndarray, targets: np.ndarray, lr: float) -> SupportsFloat:
        """One optimiser step on a batch; its loss."""
        ...


class Contender(Protocol):
    """A module that is timed: a backend, a peer of it, or a Python file of that form."""

    def build_trainer(self, experiment: Experiment, num_classes: int, base: Base) -> Steps:
        """A model with its method and optimiser."""
        ...

    def version(self) -> str:
        """The framework, its version and its device: ``mlx 0.32.4 (cpu)``."""
        ...

    def synchronize(self) -> None:
        """Waits until everything that was asked for is computed."""
        ...

    def peak_memory(self) -> int | None:
        """Bytes that arrays held at once, at most, since a model or a trainer was built last; None where nobody counts,
        as PyTorch on a CPU."""
        ...

    def saved_bytes(self, trainer: Any, images: np.ndarray, targets: np.ndarray) -> int | None:
        """Bytes of activations that a step of its own trainer keeps for the backward pass; None where they cannot be
        counted."""
        ...

    def multiply(
        self, batch: int, m: int, k: int, n: int, precision: Precision = "float32"
    ) -> Callable[[], None] | None:
        """What computes one ``(batch, m, k) @ (batch, k, n)`` in a precision and waits for it; None where that is not
        measured."""
        ...


class Measured(Contender, Protocol):
    """What more is measured of a backend of ours."""

    def step_bytes(self, trainer: Any, step: Callable[[], object]) -> int:
        """Bytes that arrays hold at once, at most, while a step of its own trainer runs: all that it has, and what it
        makes."""
        ...

    def resizing(self, images: np.ndarray, preprocessing: Preprocessing, size: int) -> Callable[[], None]:
        """What makes a batch of uint8 images a model's input and waits for it."""
        ...


class ManyAdapters(Protocol):
    """Another library's model with many adapters, which is timed beside a bank."""

    def mixed(self, images: np.ndarray, adapters: Sequence[str]) -> object:
        """The logits of images of which each has the adapter of a name."""
        ...

    def switch(self, adapter: str) -> None:
        """Makes one answer whatever ``logits`` is asked."""
        ...

    def logits(self, images: np.ndarray) -> object:
        """Those of the adapter that is active."""
        ...


class PeerOfBanks(Protocol):
    """The module of such a library."""

    def build_bank(self, experiment: Experiment, num_classes: int, base: Base, names: Sequence[str]) -> ManyAdapters:
        """A model with adapters of the experiment's method, drawn."""
        ...

    def version(self) -> str:
        """As ``Contender.version``."""
        ...

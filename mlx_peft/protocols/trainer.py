"""A model that learns: a method and an optimiser, whatever framework computes them.

Targets cross the border as the base's task has them: ``(batch, ...)``, see ``mlx_peft.tasks``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, SupportsFloat

import numpy as np

from mlx_peft.core.border import Tensors
from mlx_peft.protocols.model import Model


class Trainer(Protocol):
    """A model, its method and its optimiser, ready to train."""

    @property
    def model(self) -> Model:
        """What is trained; its answers are those of the last step's parameters."""
        ...

    @property
    def step(self) -> int:
        """Optimiser steps begun; ``state`` holds it."""
        ...

    def train_step(
        self, images: np.ndarray, targets: np.ndarray, lr: float, *, weight: float | None = None, observe: bool = False
    ) -> SupportsFloat:
        """One optimiser step on a batch: the gradients of its parts, summed, and one update.

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

    def loss_and_gradients(self, images: np.ndarray, targets: np.ndarray, scale: float = 1.0) -> tuple[float, Tensors]:
        """The loss of a batch in training mode, penalty and all, and its gradient for each trained parameter.

        Nothing is updated, and no dropout drawn. The loss is multiplied by ``scale`` before the backward pass, and the
        gradients are divided by it after: float16 has no numbers as small as some of theirs.
        """
        ...

    def state(self) -> Tensors:
        """All that an exact resume needs: trained parameters, optimiser slots, counters, loss scale."""
        ...

    def load_state(self, state: Tensors) -> None:
        """Sets what ``state`` returned, bit for bit. Raises ValueError where names or shapes differ.

        The scale of the loss, which half precision alone has, may be missing, and may be too much.
        """
        ...

    def peak_memory(self) -> int | None:
        """Bytes that arrays held at once, at most, since it was built; None where nobody counts (PyTorch on a CPU)."""
        ...

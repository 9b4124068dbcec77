"""What a bank asks of a backend: a network whose rows each have terms of their own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from mlx_peft.adaptation.forms import Form
from mlx_peft.adaptation.terms import Entering, Layers, Plain


class Mixer(Plain, Protocol):
    """A network, its base held once, that takes adapters' terms at each call.

    Attributes:
        compiles: whether a form of terms that it has not met costs a compilation.
    """

    compiles: bool

    def hold(self, layers: Layers) -> Any:
        """Terms as the network takes them, on its device; what several layers share is held once."""

    def vectors(
        self, images: np.ndarray, rows: Sequence[Any | None], form: Form, prompts: tuple[Entering, ...]
    ) -> np.ndarray:
        """What the heads read, float32 ``(batch, heads, dim)``, of images of which each has terms of its own.

        Rows that are all of one adapter copy nothing. Where terms of several are gathered, those stay so of the rows
        that went through the network last, and the same rows again copy nothing.

        Args:
            images: uint8 ``(batch, h, w, 3)``.
            rows: what ``hold`` gave, one an image; None for the bare network.
            form: holds each row's own.
            prompts: what the rows' prompts do, in all of them alike.
        """

"""A model that answers: weights with a method in them, whatever framework computes it.

Everything that crosses this border is NumPy: images as uint8 ``(batch, height, width, 3)`` exactly as decoded, or in
their place the float32 features that the model made of them (the dtype tells which); tensors by timm's names.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Protocol

import numpy as np

from mlx_peft.adaptation.prefix import Prefix
from mlx_peft.codes.quantizers import Quantizer
from mlx_peft.core.border import Parameters, Tensors
from mlx_peft.library.framework import Network
from mlx_peft.vit.attention import Explanation


class Answering(Protocol):
    """What answers."""

    def logits(self, images: np.ndarray) -> np.ndarray:
        """Evaluation mode: float32 ``(batch, classes)``."""
        ...


class Model(Answering, Protocol):
    """A base with a method in it; its weights are what they were when it was built, until an adapter is loaded."""

    @property
    def network(self) -> Network:
        """The framework's own module, for whoever trains or asks it by hand."""
        ...

    @property
    def parameters(self) -> Parameters:
        """How many numbers it has, and how many of them are the method's and the head's."""
        ...

    @property
    def prefix(self) -> Prefix | None:
        """The frozen part whose features may stand for images; None where there is no such part."""
        ...

    def features(self, images: np.ndarray) -> np.ndarray:
        """What the prefix makes of images: float32 ``(batch, *prefix.shape)``."""
        ...

    def vectors(self, images: np.ndarray) -> np.ndarray:
        """What the heads read, evaluation mode: float32 ``(batch, heads, dim)``, of uint8 images alone."""
        ...

    def adapter(self) -> Tensors:
        """What can be trained, the head included, float32, by parameter name: ``blocks.0.attn.qkv.lora_A``."""
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

    def record(
        self, images: np.ndarray, observe: Callable[[str, np.ndarray], object], at: Collection[str] | None = None
    ) -> None:
        """Shows what enters each product of the blocks, evaluation mode, float32: ``observe(point, operand)``.

        The points are those of ``config.simulation``; an operand is ``(batch, tokens, dim)`` or, inside attention,
        ``(batch, heads, tokens, ...)``. ``at``: the points that are shown; None: all. Attention's probabilities are
        formed only where one of its own is. For a model that is not simulated yet.
        """
        ...

    def explain(self, images: np.ndarray, classes: Sequence[int] | None = None) -> Explanation:
        """What attention takes in each block, evaluation mode, and its gradient; what each reducer leaves.

        It is a program of its own: ``logits`` computes none of it. ``classes`` are those whose logits are
        differentiated, one an image; None: the likeliest.
        """
        ...

    def simulate(self, quantizers: Mapping[str, Quantizer]) -> None:
        """Rounds the operand of each point that has a quantiser, from here on. For a model without a method."""
        ...

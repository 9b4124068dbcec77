"""The bottleneck that several methods put into blocks, each at places of its own.

up(drop(act(down(x)))): down ``(bottleneck, dim)``, up ``(dim, bottleneck)``, both with a bias. What x is, and what the
result is added to, the methods say: beside the MLP (``adaptformer``), behind the block (``adapter_plus``), behind
attention and behind the MLP (``houlsby``).
"""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx
import mlx.nn as nn

from mlx_peft.backend.methods.adapted import Adapted
from mlx_peft.backend.models.layers import Linear
from mlx_peft.backend.models.stochastic import Dropout
from mlx_peft.vit.initial import truncated

STD = 0.01
"""The deviation of Houlsby's initial weights, by which a bottleneck starts near the identity."""


class Bottleneck(Adapted):
    """A frozen block, or a layer of one, with a trained bottleneck, in float32 whatever the base's dtype.

    Args:
        base_layer: what has it; it is kept as ``base_layer``.
        act: the activation between its layers.
        down: the initial weight of down, ``(bottleneck, dim)``.
        up: likewise of up, ``(dim, bottleneck)``; None: 0, as the biases are.
        dropout: probability on the bottleneck.
    """

    def __init__(
        self,
        base_layer: nn.Module,
        act: Callable[[mx.array], mx.array],
        down: mx.array,
        up: mx.array | None = None,
        dropout: float = 0.0,
    ):
        super().__init__(base_layer)
        bottleneck, dim = down.shape
        self.adapter_down = Linear(dim, bottleneck)
        self.adapter_down.weight = down
        self.adapter_up = Linear(bottleneck, dim)
        if up is not None:
            self.adapter_up.weight = up
        self.act = act
        self.dropout = Dropout(dropout)

    def bottleneck(self, x: mx.array) -> mx.array:
        """up(drop(act(down(x))))."""
        return self.adapter_up(self.dropout(self.act(self.adapter_down(x))))


def near_identity(width: int, dim: int, seed: int, path: str) -> tuple[mx.array, mx.array]:
    """Houlsby's down ``(width, dim)`` and up ``(dim, width)`` at a path: N(0, 0.01), cut off at two deviations."""
    down = truncated((width, dim), STD, seed, f"{path}.adapter_down.weight")
    return mx.array(down), mx.array(truncated((dim, width), STD, seed, f"{path}.adapter_up.weight"))

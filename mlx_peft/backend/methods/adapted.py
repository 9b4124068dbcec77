"""What stands in a layer's place once a method is in the model."""

from __future__ import annotations

import mlx.nn as nn


class Adapted(nn.Module):
    """A frozen layer, or a block, with what a method puts into it or beside it.

    Args:
        base_layer: the layer; it is kept as ``base_layer``.
    """

    def __init__(self, base_layer: nn.Module):
        super().__init__()
        self.base_layer = base_layer

    def merged(self) -> nn.Module:
        """A plain layer that computes the same. A method that merges has it for each of its layers."""
        raise NotImplementedError

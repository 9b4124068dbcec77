"""What stands in a layer's place once a method is in the model."""

from __future__ import annotations

from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn


class Terms(NamedTuple):
    """What an adapter does to one layer: y = gain * (layer(into * x) + B A x) + shift; float32, None for no change.

    Attributes:
        into: ``(in,)``.
        A: ``(r, in)``, B ``(out, r)``, with all factors of theirs.
        gain: ``(out,)``, shift likewise.
    """

    into: mx.array | None = None
    A: mx.array | None = None
    B: mx.array | None = None
    gain: mx.array | None = None
    shift: mx.array | None = None


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

    def terms(self) -> Terms:
        """What it computes beside its base, without dropout. A method that mixes has it for each of its layers."""
        raise NotImplementedError

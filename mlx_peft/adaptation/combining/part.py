"""One of the adapters that are combined."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mlx_peft.adaptation.combining.rules import Stream
from mlx_peft.config.methods import MethodConfig
from mlx_peft.core.border import Tensors
from mlx_peft.vit.initial import generator


@dataclass(frozen=True)
class Part:
    """An adapter and its weight.

    Attributes:
        name: what it is called.
        tensors: as ``adapter_shapes`` lists them; heads among them are passed over.
    """

    name: str
    method: MethodConfig
    tensors: Tensors
    weight: float


def numbered(seed: int, numbers: Sequence[int], name: str) -> Stream:
    """The random numbers of each adapter for a tensor: of its number among all, the seed and the tensor's name alone.

    Args:
        numbers: of those that have the tensor.
    """

    def stream(index: int) -> np.random.Generator:
        return generator(seed, f"{numbers[index]} {name}")

    return stream

"""The linear probe: nothing but the head is trained."""

from __future__ import annotations

import mlx.nn as nn

from mlx_peft.backend.models.vit import VisionTransformer
from mlx_peft.config.methods import Linear


def apply(model: VisionTransformer, method: Linear, seed: int) -> None:
    """Leaves the model as it is: the head is trained under every method."""


def merge(model: VisionTransformer) -> dict[str, nn.Module]:
    """Nothing was added, so nothing is replaced."""
    return {}

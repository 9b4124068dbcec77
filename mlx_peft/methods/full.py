"""Full fine-tuning: everything is trained."""

from __future__ import annotations

import mlx.nn as nn

from mlx_peft.config.methods import Full
from mlx_peft.models.vit import VisionTransformer


def apply(model: VisionTransformer, method: Full, seed: int) -> None:
    """Trains every parameter."""
    model.unfreeze()


def merge(model: VisionTransformer) -> dict[str, nn.Module]:
    """Nothing was added, so nothing is replaced."""
    return {}

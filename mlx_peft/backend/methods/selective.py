"""Methods that add nothing: they train some of the model's own parameters."""

from __future__ import annotations

import mlx.nn as nn

from mlx_peft.backend.methods.targets import train
from mlx_peft.backend.models.vit import VisionTransformer
from mlx_peft.config.methods.selective import Selective


def apply(model: VisionTransformer, method: Selective, seed: int) -> None:
    """Trains the parameters that the method selects."""
    for name in method.selected(model.architecture):
        train(model, name)


def merge(model: VisionTransformer) -> dict[str, nn.Module]:
    """Nothing was added, so nothing is replaced."""
    return {}

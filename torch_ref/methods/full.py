"""Full fine-tuning: everything is trained."""

from __future__ import annotations

from torch import nn

from mlx_peft.config.methods import Full
from torch_ref.models.vit import VisionTransformer


def apply(model: VisionTransformer, method: Full, seed: int) -> None:
    """Trains every parameter."""
    model.requires_grad_(True)


def merge(model: VisionTransformer) -> dict[str, nn.Module]:
    """Nothing was added, so nothing is replaced."""
    return {}

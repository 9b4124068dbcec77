"""The linear probe: nothing but the head is trained."""

from __future__ import annotations

from mlx_peft.backend.methods.method import Method
from mlx_peft.backend.models.vit import VisionTransformer
from mlx_peft.config.methods import Linear


class LinearMethod(Method[Linear]):
    """The model stays as it is: the head is trained under every method."""

    def apply(self, model: VisionTransformer, config: Linear, seed: int) -> None:
        """Leaves the model as it is: the head is trained under every method."""

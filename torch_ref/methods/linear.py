"""The linear probe: nothing but the head is trained."""

from __future__ import annotations

from mlx_peft.config.methods import Linear
from torch_ref.methods.method import Method
from torch_ref.models.vit import VisionTransformer


class LinearMethod(Method[Linear]):
    """The model stays as it is: the head is trained under every method."""

    def apply(self, model: VisionTransformer, config: Linear, seed: int) -> None:
        """Leaves the model as it is: the head is trained under every method."""

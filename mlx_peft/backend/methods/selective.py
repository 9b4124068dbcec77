"""Methods that add nothing: they train some of the model's own parameters."""

from __future__ import annotations

from mlx_peft.backend.methods.method import Method
from mlx_peft.backend.methods.targets import train
from mlx_peft.backend.models.vit import VisionTransformer
from mlx_peft.config.methods.selective import Selective


class SelectiveMethod(Method[Selective]):
    """The parameters that the configuration selects are trained."""

    def apply(self, model: VisionTransformer, config: Selective, seed: int) -> None:
        for name in config.selected(model.architecture):
            train(model, name)

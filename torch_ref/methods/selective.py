"""Methods that add nothing: they train some of the model's own parameters."""

from __future__ import annotations

from mlx_peft.config.methods.selective import Selective
from torch_ref.methods.method import Method
from torch_ref.methods.targets import train
from torch_ref.models.vit import VisionTransformer


class SelectiveMethod(Method[Selective]):
    """The parameters that the configuration selects are trained."""

    def apply(self, model: VisionTransformer, config: Selective, seed: int) -> None:
        for name in config.selected(model.architecture):
            train(model, name)

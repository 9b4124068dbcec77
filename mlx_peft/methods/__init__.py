"""The fine-tuning methods in MLX, and the registry that finds one by its configuration."""

from __future__ import annotations

from types import ModuleType

from mlx_peft import blas as _blas  # noqa: F401  before mlx.core

# isort: split
import mlx.nn as nn

from mlx_peft.config.methods import MethodConfig
from mlx_peft.config.parameters import HEADS
from mlx_peft.methods import linear, lora, selective
from mlx_peft.methods.targets import replace
from mlx_peft.models.vit import VisionTransformer

METHODS: dict[str, ModuleType] = {
    "linear": linear,
    "full": selective,
    "bitfit": selective,
    "layernorm": selective,
    "lora": lora,
}


def apply(model: VisionTransformer, method: MethodConfig, seed: int) -> None:
    """Freezes the model but for its heads and what the method trains, which it puts in place.

    Raises UserError where a target matches no layer or the method does not fit the model.
    """
    method.check(model.architecture)
    model.freeze()
    METHODS[method.name].apply(model, method, seed)
    for name in HEADS:
        if name in model:
            model[name].unfreeze()


def merge(model: VisionTransformer) -> dict[str, nn.Module]:
    """Folds what the method put into the model into plain layers, in place; ``unmerge`` takes what this returns.

    Raises UserError where the mathematics does not allow it.
    """
    replaced: dict[str, nn.Module] = {}
    for module in dict.fromkeys(METHODS.values()):
        replaced |= module.merge(model)
    return replaced


def unmerge(model: VisionTransformer, replaced: dict[str, nn.Module]) -> None:
    """Puts back what ``merge`` replaced, bit for bit."""
    for path, layer in replaced.items():
        replace(model, path, layer)

"""Training through codes: the blocks' linear layers, whatever a method made of them, rounded and merged into codes."""

from __future__ import annotations

from torch import nn

from mlx_peft.config.quantization import QAT
from torch_ref.methods.targets import find, replace
from torch_ref.models.vit import VisionTransformer
from torch_ref.quant.aware import AwareLayer, aware


def apply(model: VisionTransformer, qat: QAT) -> None:
    """Rounds every linear layer of the blocks, each with the method's update in it.

    Raises UserError where the group does not divide a layer's width.
    """
    for site in qat.sites(model.architecture):
        replace(model, site.path, aware(find(model, site.path), qat))


def layers(model: VisionTransformer) -> dict[str, AwareLayer]:
    """The layers whose weight is rounded, by path."""
    return {path: layer for path, layer in model.named_modules() if isinstance(layer, AwareLayer)}


def exact(model: VisionTransformer) -> set[str]:
    """The names of frozen weights that codes are made of: they stay float32, so that the codes do not depend on how
    precisely the rest is computed."""
    return {f"{path}.{name}" for path in layers(model) for name in ("weight", "base_layer.weight")}


def unrounded(model: VisionTransformer) -> dict[str, nn.Module]:
    """For each rounded layer that no method wraps, by path, a plain one with its weight and bias."""
    found = layers(model)
    return {path: layer.with_weight(layer.weight) for path, layer in found.items() if layer.base_layer is layer}


def merge(model: VisionTransformer) -> dict[str, nn.Module]:
    """Replaces each layer whose weight is rounded by its quantised one. Returns what was replaced."""
    replaced = layers(model)
    merged = {path: layer.merged() for path, layer in replaced.items()}  # all of them, before one is put in place
    for path, layer in merged.items():
        replace(model, path, layer)
    return replaced

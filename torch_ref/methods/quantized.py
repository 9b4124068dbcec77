"""The base below a method: its linear layers quantised, and back."""

from __future__ import annotations

from torch import nn

from mlx_peft.config.quantization import Quantization
from torch_ref.methods.targets import find, replace
from torch_ref.models.vit import VisionTransformer
from torch_ref.quant.affine import QuantizedLinear


def quantize(model: VisionTransformer, quantization: Quantization) -> None:
    """Puts a quantised layer in the place of every linear layer of the blocks.

    Raises UserError where the group does not divide a layer's width.
    """
    for site in quantization.sites(model.architecture):
        layer = QuantizedLinear.from_linear(find(model, site.path), quantization.bits, quantization.group_size)
        replace(model, site.path, layer)
    model.quantization = quantization


def layers(model: VisionTransformer) -> dict[str, QuantizedLinear]:
    """The quantised layers by path, those below a method's own too."""
    return {path: layer for path, layer in model.named_modules() if isinstance(layer, QuantizedLinear)}


def dequantize(model: VisionTransformer) -> dict[str, nn.Module]:
    """Replaces each quantised layer by a plain one with the weight its codes stand for. Returns what was replaced."""
    replaced = layers(model)
    dequantized = {path: layer.dequantized() for path, layer in replaced.items()}  # all, before one is put in place
    for path, layer in dequantized.items():
        replace(model, path, layer)
    return replaced


def sizes(model: VisionTransformer) -> dict[str, int]:
    """How many numbers each tensor of the quantised layers stands for: a weight as many as it codes, scales none."""
    found = {}
    for path, layer in layers(model).items():
        outputs, inputs = layer.shape
        found |= {f"{path}.weight": outputs * inputs, f"{path}.scales": 0, f"{path}.biases": 0}
    return found

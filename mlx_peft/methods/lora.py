"""LoRA: a low-rank update beside a frozen linear layer.

y = W x + b + s B A drop(x); A ``(r, in)``, B ``(out, r)``; s = alpha / r, or alpha / sqrt(r) (rsLoRA).
Initially A ~ U(-1/sqrt(in), 1/sqrt(in)), which is Kaiming uniform with a = sqrt 5, and B = 0.
Hu et al. 2021 (arXiv 2106.09685), section 4.1; Kalajdzievski 2023 (arXiv 2312.03732).
"""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from convert.initial import kaiming_uniform
from mlx_peft.config.methods import LoRA
from mlx_peft.config.sites import PARTS, Site
from mlx_peft.methods.targets import unwrap, wrap
from mlx_peft.models.layers import Linear
from mlx_peft.models.stochastic import Dropout
from mlx_peft.models.vit import VisionTransformer


class LoRALinear(nn.Module):
    """A frozen linear layer with a trained low-rank update, in float32 whatever the base's dtype.

    With ``parts``, some of q, k and v of a fused qkv are adapted, each with its own A and B; they are held stacked,
    ``lora_A (parts r, in)`` and ``lora_B (parts out/3, r)``, and the rows of the other parts stay untouched.

    Args:
        base_layer: the layer; it is kept as ``base_layer``.
        lora_A: the initial A.
        rank: r.
        scaling: s.
        dropout: probability on the input of A.
        parts: some of ``("q", "k", "v")``, in this order; empty for the whole layer.
    """

    def __init__(
        self,
        base_layer: Linear,
        lora_A: mx.array,
        rank: int,
        scaling: float,
        dropout: float = 0.0,
        parts: tuple[str, ...] = (),
    ):
        super().__init__()
        rows = base_layer.weight.shape[0]
        self.base_layer = base_layer
        self.dropout = Dropout(dropout)
        self.lora_A = lora_A
        self.lora_B = mx.zeros((rows // len(PARTS) * len(parts) if parts else rows, rank))
        self.scaling = scaling
        self.parts = parts

    def placed_B(self) -> mx.array:
        """B as one ``(out, r)`` matrix; with parts ``(out, parts r)``, each part's block in its rows and columns."""
        if not self.parts:
            return self.lora_B
        blocks = dict(zip(self.parts, mx.split(self.lora_B, len(self.parts)), strict=True))
        height, rank = self.lora_B.shape[0] // len(self.parts), self.lora_B.shape[1]
        zeros = mx.zeros((height, rank), self.lora_B.dtype)
        columns = [
            mx.concatenate([blocks[part] if part == row else zeros for row in PARTS], axis=0) for part in self.parts
        ]
        return mx.concatenate(columns, axis=1)

    def __call__(self, x: mx.array) -> mx.array:
        A, B = self.lora_A, self.placed_B()
        weight = self.base_layer.weight
        bias = self.base_layer.bias if "bias" in self.base_layer else None
        # W + s B A would round small updates away in half precision, and dropout is on the input of A alone.
        if x.dtype == weight.dtype == mx.float32 and not (self.training and self.dropout.rate):
            return formed_product(x, weight, bias, A, B, self.scaling)
        down = self.dropout(x) @ A.astype(x.dtype).T
        return mx.addmm(self.base_layer(x), down, (self.scaling * B).astype(x.dtype).T)

    def merged(self) -> Linear:
        """A plain layer with W + s B A, computed in float32 and kept in the base's dtype."""
        weight = self.base_layer.weight
        delta = self.scaling * (self.placed_B() @ self.lora_A)
        layer = Linear(weight.shape[1], weight.shape[0], "bias" in self.base_layer)
        layer.update(self.base_layer.parameters())
        layer.weight = (weight.astype(mx.float32) + delta).astype(weight.dtype)
        layer.freeze()
        return layer


def formed_product(
    x: mx.array, weight: mx.array, bias: mx.array | None, A: mx.array, B: mx.array, scaling: float
) -> mx.array:
    """x (W + s B A)^T + b in one product, without a gradient for W.

    Forming W + s B A costs r multiplications a weight, far less than a second pass over the activations. The backward
    pass forms it again rather than keep it. With g = dL/dy: dx = g (W + s B A), dA = s (g B)^T x, dB = s g^T (x A^T).
    """

    @mx.custom_function
    def product(x: mx.array, A: mx.array, B: mx.array) -> mx.array:
        formed = mx.addmm(weight, B, A, alpha=scaling)
        return x @ formed.T if bias is None else mx.addmm(bias, x, formed.T)

    @product.vjp
    def product_vjp(primals, cotangent, _):  # type: ignore[no-untyped-def]
        x, A, B = primals
        rows, grad = x.reshape(-1, x.shape[-1]), cotangent.reshape(-1, cotangent.shape[-1])
        # Transposed, so that the compiler does not find it equal to the forward's and keep that alive in between.
        formed = mx.addmm(weight.T, A.T, B.T, alpha=scaling)
        dx = (grad @ formed.T).reshape(x.shape)
        dA = scaling * ((grad @ B).T @ rows)
        dB = scaling * ((rows @ A.T).T @ grad).T
        return dx, dA, dB

    return product(x, A, B)


def apply(model: VisionTransformer, method: LoRA, seed: int) -> None:
    """Wraps every target. The initial A is drawn by name, so both backends start from the same one."""

    def wrapper(site: Site, layer: Linear) -> LoRALinear:
        rank = method.rank_of(site.path)
        shape = (rank * max(len(site.parts), 1), site.inputs)
        A = mx.array(kaiming_uniform(shape, site.inputs, seed, f"{site.path}.lora_A"))
        return LoRALinear(layer, A, rank, method.scaling_of(site.path), method.dropout, site.parts)

    wrap(model, method.sites(model.architecture), wrapper)


def merge(model: VisionTransformer) -> dict[str, nn.Module]:
    """Replaces every LoRALinear by its merged layer. Returns what was replaced."""
    return unwrap(model, LoRALinear, LoRALinear.merged)

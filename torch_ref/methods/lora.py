"""LoRA: a low-rank update beside a frozen linear layer.

y = W x + b + s B A drop(x); A ``(r, in)``, B ``(out, r)``; s = alpha / r, or alpha / sqrt(r) (rsLoRA).
Initially A ~ U(-1/sqrt(in), 1/sqrt(in)), which is Kaiming uniform with a = sqrt 5, and B = 0.
Hu et al. 2021 (arXiv 2106.09685), section 4.1; Kalajdzievski 2023 (arXiv 2312.03732).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convert.initial import kaiming_uniform
from mlx_peft.config.methods import LoRA
from mlx_peft.config.sites import PARTS, Site
from torch_ref.methods.targets import unwrap, wrap
from torch_ref.models.layers import Linear
from torch_ref.models.stochastic import Dropout
from torch_ref.models.vit import VisionTransformer


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
        lora_A: Tensor,
        rank: int,
        scaling: float,
        dropout: float = 0.0,
        parts: tuple[str, ...] = (),
    ):
        super().__init__()
        rows = base_layer.weight.shape[0]
        self.base_layer = base_layer
        self.dropout = Dropout(dropout)
        self.lora_A = nn.Parameter(lora_A)
        self.lora_B = nn.Parameter(lora_A.new_zeros(rows // len(PARTS) * len(parts) if parts else rows, rank))
        self.scaling = scaling
        self.parts = parts

    def placed_B(self) -> Tensor:
        """B as one ``(out, r)`` matrix; with parts ``(out, parts r)``, each part's block in its rows and columns."""
        if not self.parts:
            return self.lora_B
        blocks = dict(zip(self.parts, self.lora_B.chunk(len(self.parts)), strict=True))
        height, rank = self.lora_B.shape[0] // len(self.parts), self.lora_B.shape[1]
        zeros = self.lora_B.new_zeros(height, rank)
        columns = [torch.cat([blocks[part] if part == row else zeros for row in PARTS]) for part in self.parts]
        return torch.cat(columns, dim=1)

    def forward(self, x: Tensor) -> Tensor:
        A, B = self.lora_A, self.placed_B()
        weight, bias = self.base_layer.weight, self.base_layer.bias
        # W + s B A would round small updates away in half precision, and dropout is on the input of A alone.
        if x.dtype == weight.dtype == torch.float32 and not (self.training and self.dropout.rate):
            return formed_product(x, weight, bias, A, B, self.scaling)
        down = self.dropout(x) @ A.to(x.dtype).T
        return self.base_layer(x) + down @ (self.scaling * B).to(x.dtype).T

    @torch.no_grad()
    def merged(self) -> Linear:
        """A plain layer with W + s B A, computed in float32 and kept in the base's dtype."""
        weight = self.base_layer.weight
        delta = self.scaling * (self.placed_B() @ self.lora_A)
        layer = Linear(weight.shape[1], weight.shape[0], bias=False).requires_grad_(False)
        layer.weight.data, layer.bias = (weight.float() + delta).to(weight.dtype), self.base_layer.bias
        return layer


class _FormedProduct(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, A: Tensor, B: Tensor, scaling: float
    ) -> Tensor:
        ctx.save_for_backward(x, weight, A, B)
        ctx.scaling = scaling
        return F.linear(x, torch.addmm(weight, B, A, alpha=scaling), bias)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, A, B = ctx.saved_tensors
        rows, grad = x.reshape(-1, x.shape[-1]), cotangent.reshape(-1, cotangent.shape[-1])
        dx = None
        if ctx.needs_input_grad[0]:
            dx = (grad @ torch.addmm(weight, B, A, alpha=ctx.scaling)).reshape(x.shape)
        dA = (grad @ B).mul_(ctx.scaling).T @ rows
        dB = ((rows @ A.T).mul_(ctx.scaling).T @ grad).T  # twice as fast as its transpose
        return dx, None, None, dA, dB, None


def formed_product(x: Tensor, weight: Tensor, bias: Tensor | None, A: Tensor, B: Tensor, scaling: float) -> Tensor:
    """x (W + s B A)^T + b in one product, without a gradient for W.

    Forming W + s B A costs r multiplications a weight, far less than a second pass over the activations. The backward
    pass forms it again rather than keep it. With g = dL/dy: dx = g (W + s B A), dA = s (g B)^T x, dB = s g^T (x A^T).
    """
    return _FormedProduct.apply(x, weight, bias, A, B, scaling)


def apply(model: VisionTransformer, method: LoRA, seed: int) -> None:
    """Wraps every target. The initial A is drawn by name, so both backends start from the same one."""

    def wrapper(site: Site, layer: Linear) -> LoRALinear:
        rank = method.rank_of(site.path)
        shape = (rank * max(len(site.parts), 1), site.inputs)
        A = torch.from_numpy(kaiming_uniform(shape, site.inputs, seed, f"{site.path}.lora_A")).to(layer.weight.device)
        return LoRALinear(layer, A, rank, method.scaling_of(site.path), method.dropout, site.parts)

    wrap(model, method.sites(model.architecture), wrapper)


def merge(model: VisionTransformer) -> dict[str, nn.Module]:
    """Replaces every LoRALinear by its merged layer. Returns what was replaced."""
    return unwrap(model, LoRALinear, LoRALinear.merged)

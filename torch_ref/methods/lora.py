"""LoRA and what is built on it: a low-rank update beside a frozen linear layer.

LoRA: y = W x + b + s B A drop(x); A ``(r, in)``, B ``(out, r)``; s = alpha / r, or alpha / sqrt(r) (rsLoRA).
Initially A ~ U(-1/sqrt(in), 1/sqrt(in)), which is Kaiming uniform with a = sqrt 5, and B = 0.
Hu et al. 2021 (arXiv 2106.09685), section 4.1; Kalajdzievski 2023 (arXiv 2312.03732), section 3. LoRA+ is the same with
a larger learning rate for B: Hayou et al. 2024 (arXiv 2402.12354), section 4.

PiSSA: y = (W - s B0 A0) x + b + s B A drop(x); A0 and B0, which A and B start from, are W's r leading singular
triplets: A0 = S^(1/2) V^T / sqrt(s), B0 = U S^(1/2) / sqrt(s). W stays as it was, and A0 and B0 are kept beside it.
Meng et al. 2024 (arXiv 2404.02948), section 3.

DoRA: y = W x + b + (c - 1) W drop(x) + c s B A drop(x), which without dropout is c V x + b, V = W + s B A; c = m / n
``(out,)``, n the norms of V's rows, through which no gradient goes. Initially m is the norms of W's rows.
Liu et al. 2024 (arXiv 2402.09353), sections 4.1 and 4.3. Under PiSSA, W - s B0 A0 stands for W in y and V.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlx_peft.adaptation.factors import initial_factors, row_norms
from mlx_peft.config.methods import LoRA
from mlx_peft.vit.sites import PARTS, Site
from torch_ref.methods.targets import unwrap, wrap
from torch_ref.models.layers import Linear
from torch_ref.models.stochastic import Dropout
from torch_ref.models.vit import VisionTransformer

TINY = float(np.finfo(np.float32).tiny)
"""Stands for the norm of a row of zeros, which is not divided by."""


class LoRALinear(nn.Module):
    """A frozen linear layer with a trained low-rank update, in float32 whatever the base's dtype.

    With ``parts``, some of q, k and v of a fused qkv are adapted, each with its own A and B; they are held stacked,
    ``lora_A (parts r, in)`` and ``lora_B (parts out/3, r)``, and the rows of the other parts stay untouched.

    Args:
        base_layer: the layer; it is kept as ``base_layer``.
        lora_A: the initial A.
        lora_B: the initial B.
        scaling: s.
        dropout: probability on the input of A.
        parts: some of ``("q", "k", "v")``, in this order; empty for the whole layer.
        residual: whether the update counts from the initial A and B (PiSSA), kept as ``pissa_A`` and ``pissa_B``.
    """

    def __init__(
        self,
        base_layer: Linear,
        lora_A: Tensor,
        lora_B: Tensor,
        scaling: float,
        dropout: float = 0.0,
        parts: tuple[str, ...] = (),
        residual: bool = False,
    ):
        super().__init__()
        self.base_layer = base_layer
        self.dropout = Dropout(dropout)
        self.lora_A, self.lora_B = nn.Parameter(lora_A), nn.Parameter(lora_B)
        if residual:
            self.pissa_A = nn.Parameter(lora_A.clone(), requires_grad=False)
            self.pissa_B = nn.Parameter(lora_B.clone(), requires_grad=False)
        self.scaling = scaling
        self.parts = parts
        self.residual = residual

    def placed(self, B: Tensor) -> Tensor:
        """B as one ``(out, r)`` matrix; with parts ``(out, parts r)``, each part's block in its rows and columns."""
        if not self.parts:
            return B
        blocks = dict(zip(self.parts, B.chunk(len(self.parts)), strict=True))
        zeros = torch.zeros_like(blocks[self.parts[0]])
        columns = [torch.cat([blocks[part] if part == row else zeros for row in PARTS]) for part in self.parts]
        return torch.cat(columns, dim=1)

    def factors(self) -> tuple[Tensor, Tensor]:
        """A and B of the whole change from W; under PiSSA [A; A0] and [B, -B0]."""
        A, B = self.lora_A, self.placed(self.lora_B)
        if not self.residual:
            return A, B
        return torch.cat([A, self.pissa_A]), torch.cat([B, -self.placed(self.pissa_B)], dim=1)

    def plus(self, y: Tensor, x: Tensor, A: Tensor, B: Tensor) -> Tensor:
        """y + s B A x, in the dtype of x."""
        return y + (x @ A.to(x.dtype).T) @ (self.scaling * B).to(x.dtype).T

    def less_initial(self, y: Tensor, x: Tensor) -> Tensor:
        """y less what PiSSA takes out of W: y - s B0 A0 x; otherwise y."""
        return self.plus(y, x, self.pissa_A, -self.placed(self.pissa_B)) if self.residual else y

    def forms(self, x: Tensor) -> bool:
        """Whether y is one product with the formed weight.

        In half precision W + s B A would round small updates away, codes would be unpacked to be added to, and dropout
        is on the input of A alone.
        """
        return x.dtype == self.base_layer.weight.dtype == torch.float32 and not (self.training and self.dropout.rate)

    def forward(self, x: Tensor) -> Tensor:
        if self.forms(x):
            return formed_product(x, self.base_layer.weight, self.base_layer.bias, *self.factors(), self.scaling)
        return self.plus(
            self.less_initial(self.base_layer(x), x), self.dropout(x), self.lora_A, self.placed(self.lora_B)
        )

    def formed(self) -> Tensor:
        """W + s B A ``(out, in)``, in float32."""
        A, B = self.factors()
        return torch.addmm(self.base_layer.dense(), B, A, alpha=self.scaling)

    @torch.no_grad()
    def merged(self) -> Linear:
        """A plain layer with the formed weight, computed in float32 and kept in the base's dtype."""
        return self.base_layer.with_weight(self.formed())


class DoRALinear(LoRALinear):
    """A LoRALinear whose adapted rows have trained magnitudes, ``lora_magnitude_vector (outputs adapted,)``.

    Args:
        arguments: LoRALinear's.
        norms: of the base weight's rows, ``(out,)``. Those of untouched rows are kept as ``lora_magnitude_rest``: their
            c is 1, but an adapter's file has a magnitude for each row.
    """

    def __init__(self, *arguments: Any, norms: Tensor):
        super().__init__(*arguments)
        thirds = dict(zip(PARTS, norms.chunk(len(PARTS)), strict=True)) if self.parts else {}
        adapted = torch.cat([thirds[part] for part in self.parts]) if self.parts else norms
        self.lora_magnitude_vector = nn.Parameter(adapted)
        if rest := [third for part, third in thirds.items() if part not in self.parts]:
            self.lora_magnitude_rest = nn.Parameter(torch.cat(rest), requires_grad=False)

    def scales(self) -> Tensor:
        """c ``(out,)``: m / n, and 1 for the rows of parts that are not adapted."""
        with torch.no_grad():
            n = super().formed().norm(dim=1).clamp_min(TINY)
        if not self.parts:
            return self.lora_magnitude_vector / n
        m = dict(zip(self.parts, self.lora_magnitude_vector.chunk(len(self.parts)), strict=True))
        thirds = zip(PARTS, n.chunk(len(PARTS)), strict=True)
        return torch.cat([m[part] / third if part in m else torch.ones_like(third) for part, third in thirds])

    def forward(self, x: Tensor) -> Tensor:
        c, bias = self.scales(), self.base_layer.bias
        if self.forms(x):
            y = c * formed_product(x, self.base_layer.weight, None, *self.factors(), self.scaling)
        else:
            dropped = self.dropout(x)
            y = frozen = self.less_initial(self.base_layer.product(x), x)
            if dropped is not x:
                frozen = self.less_initial(self.base_layer.product(dropped), dropped)
            y = y + (c - 1).to(x.dtype) * frozen
            y = self.plus(y, dropped, self.lora_A, c[:, None] * self.placed(self.lora_B))
        return y if bias is None else y + bias.to(x.dtype)

    def formed(self) -> Tensor:
        """c (W + s B A) ``(out, in)``, in float32."""
        return self.scales()[:, None] * super().formed()


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
        dA = (grad @ B).mul_(ctx.scaling).T @ rows if ctx.needs_input_grad[3] else None
        dB = ((rows @ A.T).mul_(ctx.scaling).T @ grad).T  # twice as fast as its transpose
        return dx, None, None, dA, dB, None


def formed_product(x: Tensor, weight: Tensor, bias: Tensor | None, A: Tensor, B: Tensor, scaling: float) -> Tensor:
    """x (W + s B A)^T + b in one product, without a gradient for W.

    Forming W + s B A costs r multiplications a weight, far less than a second pass over the activations. The backward
    pass forms it again rather than keep it. With g = dL/dy: dx = g (W + s B A), dA = s (g B)^T x, dB = s g^T (x A^T).
    """
    return _FormedProduct.apply(x, weight, bias, A, B, scaling)


def apply(model: VisionTransformer, method: LoRA, seed: int) -> None:
    """Wraps every target. The initial tensors come from NumPy, so both backends start from the same ones."""

    def wrapper(site: Site, layer: Linear) -> LoRALinear:
        weight, device = layer.dense().detach().cpu().numpy(), layer.weight.device
        A, B = (torch.from_numpy(factor).to(device) for factor in initial_factors(method, site, weight, seed))
        scaling, residual = method.scaling_of(site.path), method.init == "pissa"
        arguments = (layer, A, B, scaling, method.dropout, site.parts, residual)
        norms = torch.from_numpy(row_norms(weight)).to(device)
        return DoRALinear(*arguments, norms=norms) if method.dora else LoRALinear(*arguments)

    wrap(model, method.sites(model.architecture), wrapper)


def merge(model: VisionTransformer) -> dict[str, nn.Module]:
    """Replaces every LoRALinear by its merged layer. Returns what was replaced."""
    return unwrap(model, LoRALinear, lambda layer: layer.merged())

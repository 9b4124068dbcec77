"""LoRA and what is built on it: a low-rank update beside a frozen linear layer.

LoRA: y = W x + b + s B A drop(x); A ``(r, in)``, B ``(out, r)``; s = alpha / r, or alpha / sqrt(r) (rsLoRA).
Initially A ~ U(-1/sqrt(in), 1/sqrt(in)), which is Kaiming uniform with a = sqrt 5, and B = 0; or what else ``init``
says: the equations of all starts are in ``mlx_peft/adaptation/factors.py``.
Hu et al. 2021 (arXiv 2106.09685), section 4.1; Kalajdzievski 2023 (arXiv 2312.03732), section 3. LoRA+ is the same with
a larger learning rate for B: Hayou et al. 2024 (arXiv 2402.12354), section 4.

Starts that count: y = (W - s B0 A0) x + b + s B A drop(x), A and B start from A0 and B0. W stays as it was, and A0 and
B0 are kept beside it. PiSSA's are W's r leading singular triplets, A0 = S^(1/2) V^T / sqrt(s) and B0 = U S^(1/2) /
sqrt(s): Meng et al. 2024 (arXiv 2404.02948), section 3. OLoRA's are of W = Q R, A0 = R[:r], B0 = Q[:, :r]: Buyukakyuz
2024 (arXiv 2406.01775), section 3.

DoRA: y = W x + b + (c - 1) W drop(x) + c s B A drop(x), which without dropout is c V x + b, V = W + s B A; c = m / n
``(out,)``, n the norms of V's rows, through which no gradient goes. Initially m is the norms of W's rows.
Liu et al. 2024 (arXiv 2402.09353), sections 4.1 and 4.3. Where the start counts, W - s B0 A0 stands for W in y and V.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mlx_peft.adaptation.factors import initial_factors, row_norms
from mlx_peft.config.methods import LoRA
from mlx_peft.vit.sites import PARTS, Site
from torch_ref.methods.joined import balanced, joined, rescaled
from torch_ref.methods.lowrank import LowRankLinear, formed_product, narrowed
from torch_ref.methods.method import Method
from torch_ref.methods.parts import placed
from torch_ref.methods.targets import wrap
from torch_ref.models.layers import Linear
from torch_ref.models.vit import VisionTransformer

TINY = float(np.finfo(np.float32).tiny)
"""This stands for the norm of a row of zeros, by which nothing can be divided."""


class LoRALinear(LowRankLinear):
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
        kept: the names under which A0 and B0 are kept, from which the update counts; None where it counts from W.
    """

    def __init__(
        self,
        base_layer: Linear,
        lora_A: Tensor,
        lora_B: Tensor,
        scaling: float,
        dropout: float = 0.0,
        parts: tuple[str, ...] = (),
        kept: tuple[str, str] | None = None,
    ):
        super().__init__(base_layer, scaling, dropout)
        self.lora_A, self.lora_B = nn.Parameter(lora_A), nn.Parameter(lora_B)
        for name, factor in zip(kept or (), (lora_A, lora_B), strict=False):
            self.register_parameter(name, nn.Parameter(factor.clone(), requires_grad=False))
        self.parts = parts
        self.kept = kept

    def taken(self) -> tuple[Tensor, Tensor] | None:
        """A0 and -B0, placed as B is; None where the update counts from W."""
        if self.kept is None:
            return None
        A, B = map(self.get_parameter, self.kept)
        return A, -placed(B, self.parts)

    def factors(self) -> tuple[Tensor, Tensor]:
        """A and B of the whole change from W; where the start counts [A; A0] and [B, -B0]."""
        A, B, taken = self.lora_A, placed(self.lora_B, self.parts), self.taken()
        return (A, B) if taken is None else (torch.cat([A, taken[0]]), torch.cat([B, taken[1]], dim=1))

    def less_initial(self, y: Tensor, x: Tensor) -> Tensor:
        """y less what the start takes out of W: y - s B0 A0 x; otherwise y."""
        taken = self.taken()
        return y if taken is None else self.plus(y, x, *taken)

    def beside(self, x: Tensor) -> Tensor:
        """y, the update computed beside W; what the start takes out of W is not dropped."""
        if self.kept is None:
            return super().beside(x)
        if x.dtype != torch.float32:
            A, B = balanced(*self.change(), x.dtype)
            return joined(self.base_layer, x, lambda x: (self.narrow(x, self.dropout(x), A), None), B)
        y = self.less_initial(self.base_layer(x), x)
        return self.plus(y, self.dropout(x), self.lora_A, placed(self.lora_B, self.parts))

    def moved(self) -> bool:
        """Whether the change is counted as A and B moved: B0 (A - A0) + (B - B0) A, whose terms are as small as it is.

        B A - B0 A0 would be the difference of two products that half precision has rounded. Dropout is of one of them.
        """
        return self.kept is not None and not (self.training and self.dropout.rate)

    def change(self, c: Tensor | float = 1.0) -> tuple[Tensor, Tensor]:
        """A and s c B of the change from W where half precision computes it, with c for each row of B or for all."""
        A, B, taken = self.lora_A, placed(self.lora_B, self.parts), self.taken()
        if taken is None:
            return A, self.scaling * (c * B)
        if self.moved():
            return torch.cat([A, A - taken[0]]), self.scaling * (c * torch.cat([B + taken[1], -taken[1]], dim=1))
        return torch.cat([A, taken[0]]), self.scaling * torch.cat([c * B, taken[1]], dim=1)

    def narrow(self, x: Tensor, dropped: Tensor, A: Tensor) -> Tensor:
        """What the columns of B are multiplied with, A being that of ``change``: of what is not dropped where A0 is."""
        if self.kept is None or self.moved():
            return narrowed(dropped, A)
        own = len(self.lora_A)
        return torch.cat([narrowed(dropped, A[:own]), narrowed(x, A[own:])], dim=-1)

    def formed(self) -> Tensor:
        """W + s B A ``(out, in)``, in float32."""
        A, B = self.factors()
        return torch.addmm(self.base_layer.dense(), B, A, alpha=self.scaling)


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
        if x.dtype != torch.float32:
            return self.in_half(x, c)
        if self.forms(x):
            y = c * formed_product(x, self.base_layer.weight, None, *self.factors(), self.scaling)
        else:
            dropped = self.dropout(x)
            y = frozen = self.less_initial(self.base_layer.product(x), x)
            if dropped is not x:
                frozen = self.less_initial(self.base_layer.product(dropped), dropped)
            y = y + (c - 1).to(x.dtype) * frozen
            y = self.plus(y, dropped, self.lora_A, c[:, None] * placed(self.lora_B, self.parts))
        return y if bias is None else y + bias.to(x.dtype)

    def in_half(self, x: Tensor, c: Tensor) -> Tensor:
        """y in half precision: c V x + b in float32, of a product V x; with dropout all terms in one product."""
        if not (self.training and self.dropout.rate):
            A, B = balanced(*self.change(), x.dtype)
            z = joined(self.base_layer, x, lambda x: (self.narrow(x, x, A), None), B, bias=False)
            return rescaled(z, c, self.base_layer.bias)

        A, B = balanced(*self.change(c[:, None]), x.dtype)

        def beside(x: Tensor) -> tuple[Tensor, Tensor]:
            dropped = self.dropout(x)
            frozen = self.less_initial(self.base_layer.product(dropped), dropped)
            return self.narrow(x, dropped, A), rescaled(frozen, c - 1)

        return joined(self.base_layer, x, beside, B)

    def formed(self) -> Tensor:
        """c (W + s B A) ``(out, in)``, in float32."""
        return self.scales()[:, None] * super().formed()


class LoRAMethod(Method[LoRA]):
    """LoRA, rsLoRA, LoRA+ and DoRA, however it starts: every target is wrapped."""

    def apply(self, model: VisionTransformer, config: LoRA, seed: int) -> None:
        def wrapper(site: Site, layer: Linear) -> LoRALinear:
            weight, device = layer.dense().detach().cpu().numpy(), layer.weight.device
            A, B = (torch.from_numpy(factor).to(device) for factor in initial_factors(config, site, weight, seed))
            arguments = (layer, A, B, config.scaling_of(site.path), config.dropout, site.parts, config.start_kept)
            norms = torch.from_numpy(row_norms(weight)).to(device)
            return DoRALinear(*arguments, norms=norms) if config.dora else LoRALinear(*arguments)

        wrap(model, config.sites(model.architecture), wrapper)

"""QA-LoRA: a low-rank update that is the same for all inputs of a group, and so merges into a quantised weight.

y = W x + b + s B A drop(pool(x)); pool sums each group of g consecutive inputs, or averages it; A ``(r, in / g)``, B
``(out, r)``; s = alpha / r; g is the group of the quantised W = scale * code + bias. Within a group the update adds the
same to every weight of a row, so it merges exactly into the biases ``(out, in / g)``: bias + s B A, over g where pool
averages. Codes and scales stay. Initially A ~ U(-1/sqrt(in / g), 1/sqrt(in / g)), LoRA's Kaiming uniform, and B = 0.
Xu et al. 2024 (arXiv 2309.14717), section 3.3. The code that the authors published draws A from Xavier's distribution,
U(+-sqrt(6 / (in / g + r))), and averages.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mlx_peft.config.methods import QALoRA
from mlx_peft.vit.initial import kaiming_uniform
from mlx_peft.vit.sites import Site
from torch_ref.methods.joined import balanced, joined
from torch_ref.methods.lora import LoRALinear
from torch_ref.methods.lowrank import narrowed
from torch_ref.methods.method import Method
from torch_ref.methods.parts import placed
from torch_ref.methods.targets import wrap
from torch_ref.models.layers import Linear
from torch_ref.models.vit import VisionTransformer
from torch_ref.quant.affine import QuantizedLinear


class QALoRALinear(LoRALinear):
    """A frozen quantised layer with a trained update of its groups, in float32 whatever the base's dtype.

    With ``parts``, as in LoRALinear.

    Args:
        arguments: LoRALinear's; A is ``(r, in / g)``.
        group_size: g.
        average: whether pool averages.
    """

    def __init__(self, *arguments: Any, group_size: int, average: bool):
        super().__init__(*arguments)
        self.group_size = group_size
        self.average = average

    def pooled(self, x: Tensor) -> Tensor:
        """The sum, or the mean, of each group of x's inputs: ``(..., in / g)``."""
        groups = x.reshape(*x.shape[:-1], -1, self.group_size)
        return groups.mean(dim=-1) if self.average else groups.sum(dim=-1)

    def forward(self, x: Tensor) -> Tensor:
        A, B = self.lora_A, placed(self.lora_B, self.parts)
        if x.dtype == torch.float32:
            return self.plus(self.base_layer(x), self.dropout(self.pooled(x)), A, B)
        A, B = balanced(A, self.scaling * B, x.dtype)
        return joined(self.base_layer, x, lambda x: (narrowed(self.dropout(self.pooled(x)), A), None), B)

    def factors(self) -> tuple[Tensor, Tensor]:
        """A ``(r, in)``, each value once for each input of its group, and B."""
        A, B = super().factors()
        A = A.repeat_interleave(self.group_size, dim=1)
        return A / self.group_size if self.average else A, B

    def change(self) -> Tensor:
        """What is added to the weights of each group, ``(out, in / g)``."""
        scaling = self.scaling / self.group_size if self.average else self.scaling
        return scaling * (placed(self.lora_B, self.parts) @ self.lora_A)

    @torch.no_grad()
    def merged(self) -> QuantizedLinear | Linear:
        """The quantised layer with other biases; over a base that was dequantised, a plain layer."""
        update = self.change()
        if isinstance(self.base_layer, QuantizedLinear):
            base = self.base_layer
            biases = (base.biases.float() + update).to(base.biases.dtype)
            return QuantizedLinear(base.weight, base.scales, biases, base.bias, base.bits, base.group_size)
        weight = self.base_layer.dense() + update.repeat_interleave(self.group_size, dim=1)
        return self.base_layer.with_weight(weight)


class QALoRAMethod(Method[QALoRA]):
    """Every target is wrapped, each with its own group of inputs."""

    def apply(self, model: VisionTransformer, config: QALoRA, seed: int) -> None:
        def wrapper(site: Site, layer: QuantizedLinear) -> QALoRALinear:
            width = site.inputs // layer.group_size
            shape = (config.rank * max(len(site.parts), 1), width)
            A = torch.from_numpy(kaiming_uniform(shape, width, seed, f"{site.path}.lora_A"))
            B = torch.zeros(site.adapted, config.rank)
            A, B = A.to(layer.scales.device), B.to(layer.scales.device)
            arguments = (layer, A, B, config.alpha / config.rank, config.dropout, site.parts)
            return QALoRALinear(*arguments, group_size=layer.group_size, average=config.pool == "avg")

        wrap(model, config.sites(model.architecture), wrapper)

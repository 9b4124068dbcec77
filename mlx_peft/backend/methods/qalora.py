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

import mlx.core as mx

from mlx_peft.backend.methods.joined import balanced, joined
from mlx_peft.backend.methods.lora import LoRALinear
from mlx_peft.backend.methods.lowrank import narrowed
from mlx_peft.backend.methods.method import Method
from mlx_peft.backend.methods.parts import placed
from mlx_peft.backend.methods.targets import wrap
from mlx_peft.backend.models.layers import Linear
from mlx_peft.backend.models.vit import VisionTransformer
from mlx_peft.backend.quant.affine import QuantizedLinear
from mlx_peft.config.methods import QALoRA
from mlx_peft.vit.initial import kaiming_uniform
from mlx_peft.vit.sites import Site


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

    def pooled(self, x: mx.array) -> mx.array:
        """The sum, or the mean, of each group of x's inputs: ``(..., in / g)``."""
        groups = x.reshape(*x.shape[:-1], -1, self.group_size)
        groups = groups.astype(mx.float32)
        return (groups.mean(axis=-1) if self.average else groups.sum(axis=-1)).astype(x.dtype)

    def __call__(self, x: mx.array) -> mx.array:
        A, B = self.lora_A, placed(self.lora_B, self.parts)
        if x.dtype == mx.float32:
            return self.plus(self.base_layer(x), self.dropout(self.pooled(x)), A, B)
        A, B = balanced(A, self.scaling * B, x.dtype)
        return joined(self.base_layer, x, lambda x: (narrowed(self.dropout(self.pooled(x)), A), None), B)

    def factors(self) -> tuple[mx.array, mx.array]:
        """A ``(r, in)``, each value once for each input of its group, and B."""
        A, B = super().factors()
        A = mx.repeat(A, self.group_size, axis=1)
        return A / self.group_size if self.average else A, B

    def change(self) -> mx.array:
        """What is added to the weights of each group, ``(out, in / g)``."""
        scaling = self.scaling / self.group_size if self.average else self.scaling
        return scaling * (placed(self.lora_B, self.parts) @ self.lora_A)

    def merged(self) -> QuantizedLinear | Linear:
        """The quantised layer with other biases; over a base that was dequantised, a plain layer."""
        update = self.change()
        if isinstance(self.base_layer, QuantizedLinear):
            base = self.base_layer
            biases = (base.biases.astype(mx.float32) + update).astype(base.biases.dtype)
            return QuantizedLinear(base.weight, base.scales, biases, base.get("bias"), base.bits, base.group_size)
        return self.base_layer.with_weight(self.base_layer.dense() + mx.repeat(update, self.group_size, axis=1))


class QALoRAMethod(Method[QALoRA]):
    """Every target is wrapped, each with its own group of inputs."""

    def apply(self, model: VisionTransformer, config: QALoRA, seed: int) -> None:
        def wrapper(site: Site, layer: QuantizedLinear) -> QALoRALinear:
            width = site.inputs // layer.group_size
            shape = (config.rank * max(len(site.parts), 1), width)
            A = mx.array(kaiming_uniform(shape, width, seed, f"{site.path}.lora_A"))
            B = mx.zeros((site.adapted, config.rank))
            arguments = (layer, A, B, config.alpha / config.rank, config.dropout, site.parts)
            return QALoRALinear(*arguments, group_size=layer.group_size, average=config.pool == "avg")

        wrap(model, config.sites(model.architecture), wrapper)

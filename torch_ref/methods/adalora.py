"""AdaLoRA: a low-rank update in the form of a singular value decomposition, whose triplets can be masked one by one.

y = W x + b + s B (E * (A drop(x))), s = alpha / (r + 1e-5); A ``(r, in)``, E ``(r, 1)``, B ``(out, r)``; r is the rank
at the start, also once triplets are masked (their E is 0). Initially A, B ~ N(0, 0.02), E = 0.
The loss has the penalty w mean(||A A^T - I||, ||B^T B - I||), Frobenius norms, over the A and B of all layers.
Zhang et al. 2023 (arXiv 2303.10512), sections 3.1 and 3.2; the details as Hugging Face PEFT 0.21 has them.
When which triplets are masked is decided by whoever trains: ``mlx_peft.training.allocation``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mlx_peft.config.methods import AdaLoRA
from mlx_peft.vit.initial import normal
from mlx_peft.vit.sites import Site
from torch_ref.methods.importance import Importance
from torch_ref.methods.lora import LoRALinear
from torch_ref.methods.method import Method
from torch_ref.methods.parts import placed
from torch_ref.methods.targets import find, wrap
from torch_ref.models.layers import Linear
from torch_ref.models.vit import VisionTransformer

STD = 0.02
"""A and B are drawn with this standard deviation at the start."""

TRIPLETS = ("lora_A", "lora_B", "lora_E")


class AdaLoRALinear(LoRALinear):
    """A frozen linear layer with trained triplets, in float32 whatever the base's dtype.

    With ``parts``, some of q, k and v of a fused qkv are adapted, each with its own triplets; they are held stacked,
    ``lora_A (parts r, in)``, ``lora_E (parts r, 1)``, ``lora_B (parts out/3, r)``.

    Args:
        arguments: LoRALinear's.
    """

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        self.lora_E = nn.Parameter(self.lora_A.new_zeros(len(self.lora_A), 1))

    def factors(self) -> tuple[Tensor, Tensor]:
        """E * A and B of the whole change from W."""
        return self.lora_A * self.lora_E, placed(self.lora_B, self.parts)


class AdaLoRAMethod(Method[AdaLoRA]):
    """Every target is wrapped; the training averages the importance of every element of A, B and E."""

    def apply(self, model: VisionTransformer, config: AdaLoRA, seed: int) -> None:
        scaling = config.alpha / (config.init_rank + 1e-5)

        def wrapper(site: Site, layer: Linear) -> AdaLoRALinear:
            shapes = ((config.init_rank * max(len(site.parts), 1), site.inputs), (site.adapted, config.init_rank))
            A, B = (
                torch.from_numpy(normal(shape, STD, seed, f"{site.path}.{name}")).to(layer.weight.device)
                for name, shape in zip(TRIPLETS[:2], shapes, strict=True)
            )
            return AdaLoRALinear(layer, A, B, scaling, config.dropout, site.parts)

        wrap(model, config.sites(model.architecture), wrapper)

    def penalty(self, model: VisionTransformer, config: AdaLoRA) -> Tensor:
        """What the loss gains where A's rows and B's columns are not orthonormal; float32."""
        by_shape: dict[tuple[int, ...], list[Tensor]] = {}
        for _, layer in adapted(model, config):
            count = max(len(layer.parts), 1)
            matrices = [*layer.lora_A.chunk(count), *(B.T for B in layer.lora_B.chunk(count))]
            by_shape.setdefault(matrices[0].shape, []).extend(matrices[:count])
            by_shape.setdefault(matrices[-1].shape, []).extend(matrices[count:])
        norms = []
        for matrices in by_shape.values():  # all of a shape in one product
            rows = torch.stack(matrices)
            off = rows @ rows.transpose(1, 2) - torch.eye(rows.shape[1], device=rows.device)
            squares = off.square().sum(dim=(1, 2))
            orthonormal = squares == 0  # where the root has no gradient
            norms.append(torch.where(orthonormal, 0.0, torch.where(orthonormal, 1.0, squares).sqrt()))
        return config.orth_weight * torch.cat(norms).mean()

    def importance(self, model: VisionTransformer, config: AdaLoRA) -> Importance:
        """What is averaged over the steps: the importance of every element of A, B and E."""
        names = [f"{path}.{name}" for path, _ in adapted(model, config) for name in TRIPLETS]
        return Importance(names, config.beta1, config.beta2)

    def scores(self, model: VisionTransformer, config: AdaLoRA, elements: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The score of each triplet i, ``(r,)`` by adapter: s(E_i) + mean_j s(A_ij) + mean_k s(B_ki).

        ``elements`` are the scores of single elements, by parameter. Where parts of qkv are adapted, each is an adapter
        of its own: ``blocks.0.attn.qkv/q``.
        """
        found = {}
        for path, layer in adapted(model, config):
            count = max(len(layer.parts), 1)
            A, B, E = (elements[f"{path}.{name}"].chunk(count) for name in TRIPLETS)
            for adapter, a, b, e in zip(_adapters(path, layer.parts), A, B, E, strict=True):
                found[adapter] = e[:, 0] + (a.mean(dim=1) + b.mean(dim=0))
        return found

    def masks(
        self, model: VisionTransformer, config: AdaLoRA, keep: Mapping[str, Sequence[bool]]
    ) -> dict[str, np.ndarray]:
        """Which elements of each E are kept, ``(parts r, 1)`` by parameter, from the triplets that are, by adapter."""
        return {
            f"{path}.lora_E": np.concatenate([keep[adapter] for adapter in _adapters(path, layer.parts)])[:, None]
            for path, layer in adapted(model, config)
        }


def adapted(model: VisionTransformer, config: AdaLoRA) -> Iterator[tuple[str, AdaLoRALinear]]:
    """The layers with triplets, each with its path, in the model's order."""
    return ((site.path, find(model, site.path)) for site in config.sites(model.architecture))


def _adapters(path: str, parts: tuple[str, ...]) -> list[str]:
    return [f"{path}/{part}" for part in parts] or [path]

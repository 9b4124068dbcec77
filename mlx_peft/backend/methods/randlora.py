"""RandLoRA: the update of a weight is a sum of random products of low rank, as many as make it of full rank.

y = W x + b + s U x, s = alpha / r. Of a layer's widths let d be the smaller and D the larger. A ``(r, d)`` and B_i
``(D, r)``, i up to n = ceil(d / r), are frozen and shared by all layers: the leading columns, products and rows of
matrices as large as the largest layer asks for. U is [B_1 ... B_n] C where the outputs are not fewer than the inputs,
and its transpose where they are; C ``(n r, d)`` has the rows l_ki A_k * g_i. l ``(r, n)`` and g ``(n, d)`` are trained.
Initially l = 0 and g = 1 / max(n, d). The numbers of A and B have deviation 1, and are drawn from a key of their own.
Albert et al. 2025 (arXiv 2502.00987), section 4, has the rows of C in the order of the B_i's columns; here, as Hugging
Face PEFT has it, they go by k, and by i within: each column of B, which is random, meets another row.
"""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from mlx_peft.adaptation.projections import bases
from mlx_peft.backend.methods.lowrank import LowRankLinear
from mlx_peft.backend.methods.method import Method
from mlx_peft.backend.methods.targets import wrap
from mlx_peft.backend.models.layers import Linear
from mlx_peft.backend.models.vit import VisionTransformer
from mlx_peft.config.methods import RandLoRA
from mlx_peft.vit.sites import Site


class RandLoRALinear(LowRankLinear):
    """A frozen linear layer with an update of full rank, in float32 whatever the base's dtype.

    Args:
        base_layer: the layer; it is kept as ``base_layer``.
        shared: holds ``randlora_A (r, 1, d)`` and ``randlora_B (D, n, r)``, at least as large as the layer asks for;
            read anew at each call.
        shapes: of l, ``randlora_lambda``, and g, ``randlora_gamma``.
        scaling: s.
        dropout: probability on the input.
    """

    def __init__(
        self,
        base_layer: Linear,
        shared: nn.Module,
        shapes: dict[str, tuple[int, int]],
        scaling: float,
        dropout: float = 0.0,
    ):
        super().__init__(base_layer, scaling, dropout)
        gamma = shapes["randlora_gamma"]
        self.randlora_lambda = mx.zeros(shapes["randlora_lambda"])
        self.randlora_gamma = mx.full(gamma, 1 / max(gamma))
        self._shared = (shared,)  # in a tuple, so that it is no child of every layer

    def factors(self) -> tuple[mx.array, mx.array]:
        """A ``(n r, in)`` and B ``(out, n r)``: what is trained is in that of the smaller width."""
        (shared,), (outputs, inputs) = self._shared, self.base_layer.shape
        count, width = self.randlora_gamma.shape
        scaled = self.randlora_lambda[:, :, None] * shared.randlora_A[:, :, :width] * self.randlora_gamma
        A = scaled.reshape(-1, width)
        B = shared.randlora_B[: max(outputs, inputs), :count].reshape(max(outputs, inputs), -1)
        return (A, B) if width == inputs else (B.T, A.T)


class RandLoRAMethod(Method[RandLoRA]):
    """The bases are drawn from their own key, whatever the seed, and every target is wrapped."""

    def apply(self, model: VisionTransformer, config: RandLoRA, seed: int) -> None:
        A, B = bases(config, *config.widths(model.architecture))
        model.shared.randlora_A, model.shared.randlora_B = mx.array(A), mx.array(B)
        model.shared.freeze()

        def wrapper(site: Site, layer: Linear) -> RandLoRALinear:
            return RandLoRALinear(layer, model.shared, config.factors(site), config.scaling, config.dropout)

        wrap(model, config.sites(model.architecture), wrapper)

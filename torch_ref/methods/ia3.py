"""(IA)^3: learnt factors on the outputs of some linear layers, and on the inputs of others.

y = (W x + b) * l on the output side, l ``(out,)``; y = W (x * l) + b on the feed-forward side, l ``(in,)``.
Initially l = 1. Liu et al. 2022 (arXiv 2205.05638), section 3.3: keys, values and the feed-forward layer's inner
activations, which are the inputs of fc2. Held as vectors, so that weight decay leaves them alone.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mlx_peft.config.methods import IA3
from mlx_peft.vit.sites import LAYERS, PARTS, Site
from torch_ref.methods.adapted import Adapted
from torch_ref.methods.method import Method
from torch_ref.methods.parts import among_all
from torch_ref.methods.targets import wrap
from torch_ref.models.layers import Linear
from torch_ref.models.vit import VisionTransformer


class IA3Linear(Adapted):
    """A frozen linear layer whose outputs, or inputs, are multiplied by trained factors, in float32 whatever x's dtype.

    With ``parts``, some of q, k and v of a fused qkv have factors, held one after the other, ``ia3_l (parts out/3,)``;
    those of the other parts are 1 and not trained.

    Args:
        base_layer: the layer; it is kept as ``base_layer``.
        feedforward: whether the inputs are scaled.
        parts: some of ``("q", "k", "v")``, in this order; empty for the whole layer.
    """

    def __init__(self, base_layer: Linear, feedforward: bool, parts: tuple[str, ...] = ()):
        super().__init__(base_layer)
        outputs, inputs = base_layer.shape
        outputs = outputs // len(PARTS) * len(parts) if parts else outputs
        self.ia3_l = nn.Parameter(torch.ones(inputs if feedforward else outputs))
        self.feedforward = feedforward
        self.parts = parts

    def factors(self) -> Tensor:
        """l of all outputs, or of all inputs: with parts, ones for the others."""
        return among_all(self.ia3_l, self.parts, 1.0)

    def forward(self, x: Tensor) -> Tensor:
        # The product in float32: half precision has few numbers around 1, and l moves in small steps.
        if self.feedforward:
            return self.base_layer((x * self.factors()).to(x.dtype))
        return (self.base_layer(x) * self.factors()).to(x.dtype)

    @torch.no_grad()
    def merged(self) -> Linear:
        """A plain layer with l W and l b, or W with its columns scaled, computed in float32, in the base's dtype."""
        l, base = self.factors(), self.base_layer  # noqa: E741
        layer = Linear(base.weight.shape[1], base.weight.shape[0], base.bias is not None).requires_grad_(False)
        layer.weight.data = (base.weight * (l if self.feedforward else l[:, None])).to(base.weight.dtype)
        if base.bias is not None:
            layer.bias.data = base.bias.data if self.feedforward else (base.bias * l).to(base.bias.dtype)
        return layer


class IA3Method(Method[IA3]):
    """Every target is wrapped; nothing is drawn."""

    def apply(self, model: VisionTransformer, config: IA3, seed: int) -> None:
        def wrapper(site: Site, layer: Linear) -> IA3Linear:
            return IA3Linear(layer, LAYERS[site.name] in config.inputs, site.parts)

        wrap(model, config.sites(model.architecture), wrapper)

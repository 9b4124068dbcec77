"""RoAd: pairs of a layer's outputs are turned and stretched.

y = R z, z = W x + b; of a pair (z_1, z_2), which are half a group of outputs apart,
y_1 = u_1 z_1 - v_1 z_2 and y_2 = v_2 z_1 + u_2 z_2, with u = a cos(t) and v = a sin(t). Of variant 1, both outputs of a
pair share one angle t and one factor a; of variant 2, each has its own; of variant 4, u and v have their own besides.
Initially t = 0 and a = 1.
Liao and Monz 2024 (arXiv 2409.00119), equation 4.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mlx_peft.config.methods import RoAd
from mlx_peft.vit.sites import Site
from torch_ref.methods.adapted import Adapted
from torch_ref.methods.method import Method
from torch_ref.methods.parts import among_all
from torch_ref.methods.targets import wrap
from torch_ref.models.layers import Linear
from torch_ref.models.vit import VisionTransformer


class RoAdLinear(Adapted):
    """A frozen linear layer whose outputs are turned by pairs, in float32 whatever the base's dtype.

    With ``parts``, some of q, k and v of a fused qkv are adapted; theirs are held one after the other. For n outputs
    ``road_theta`` and ``road_alpha`` are ``(n variant / 2,)``.

    Args:
        base_layer: the layer; it is kept as ``base_layer``.
        variant: 1, 2 or 4.
        group: outputs of a group.
        parts: some of ``("q", "k", "v")``, in this order; empty for the whole layer.
    """

    def __init__(self, base_layer: Linear, outputs: int, variant: int, group: int, parts: tuple[str, ...] = ()):
        super().__init__(base_layer)
        device = base_layer.weight.device
        self.road_theta = nn.Parameter(torch.zeros(outputs * variant // 2, device=device))
        self.road_alpha = nn.Parameter(torch.ones(outputs * variant // 2, device=device))
        self.variant, self.group, self.parts = variant, group, parts

    def factors(self) -> tuple[Tensor, Tensor]:
        """u and v of all outputs, ``(out,)``; 1 and 0 for the parts that are not adapted."""
        t, a = (p.reshape(-1, self.variant, self.group // 2) for p in (self.road_theta, self.road_alpha))
        # Both halves of a group, of u and of v: the same, for a variant that has fewer.
        of_u, of_v = {1: ([0, 0], [0, 0]), 2: ([0, 1], [0, 1]), 4: ([0, 1], [2, 3])}[self.variant]
        u, v = a[:, of_u] * t[:, of_u].cos(), a[:, of_v] * t[:, of_v].sin()
        return among_all(u.reshape(-1), self.parts, 1.0), among_all(v.reshape(-1), self.parts)

    def turned(self, z: Tensor) -> Tensor:
        """R z ``(..., out)``, in float32."""
        u, v = self.factors()
        pairs = z.reshape(*z.shape[:-1], -1, 2, self.group // 2)
        across = torch.stack([-pairs[..., 1, :], pairs[..., 0, :]], dim=-2).reshape(z.shape)
        return z * u + across * v

    def forward(self, x: Tensor) -> Tensor:
        # In float32: half precision has few numbers around 1, and u moves in small steps.
        return self.turned(self.base_layer(x)).to(x.dtype)

    @torch.no_grad()
    def merged(self) -> Linear:
        """A plain layer with R W and R b, computed in float32 and kept in the base's dtype."""
        base = self.base_layer
        layer = base.with_weight(self.turned(base.dense().T).T)
        if base.bias is not None:
            layer.bias = nn.Parameter(self.turned(base.bias.float()).to(base.bias.dtype), requires_grad=False)
        return layer


class RoAdMethod(Method[RoAd]):
    """Every target is wrapped; nothing is drawn."""

    def apply(self, model: VisionTransformer, config: RoAd, seed: int) -> None:
        def wrapper(site: Site, layer: Linear) -> RoAdLinear:
            return RoAdLinear(layer, site.adapted, config.variant, config.group_size, site.parts)

        wrap(model, config.sites(model.architecture), wrapper)

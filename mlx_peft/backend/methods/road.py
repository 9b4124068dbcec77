"""RoAd: pairs of a layer's outputs are turned and stretched.

y = R z, z = W x + b; of a pair (z_1, z_2), which are half a group of outputs apart,
y_1 = u_1 z_1 - v_1 z_2 and y_2 = v_2 z_1 + u_2 z_2, with u = a cos(t) and v = a sin(t). Of variant 1, both outputs of a
pair share one angle t and one factor a; of variant 2, each has its own; of variant 4, u and v have their own besides.
Initially t = 0 and a = 1.
Liao and Monz 2024 (arXiv 2409.00119), equation 4.
"""

from __future__ import annotations

import mlx.core as mx

from mlx_peft.backend.methods.adapted import Adapted
from mlx_peft.backend.methods.method import Method
from mlx_peft.backend.methods.parts import among_all
from mlx_peft.backend.methods.targets import wrap
from mlx_peft.backend.models.layers import Linear
from mlx_peft.backend.models.vit import VisionTransformer
from mlx_peft.config.methods import RoAd
from mlx_peft.vit.sites import Site


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
        self.road_theta = mx.zeros((outputs * variant // 2,))
        self.road_alpha = mx.ones((outputs * variant // 2,))
        self.variant, self.group, self.parts = variant, group, parts

    def factors(self) -> tuple[mx.array, mx.array]:
        """u and v of all outputs, ``(out,)``; 1 and 0 for the parts that are not adapted."""
        t, a = (p.reshape(-1, self.variant, self.group // 2) for p in (self.road_theta, self.road_alpha))
        # Both halves of a group, of u and of v: the same, for a variant that has fewer.
        choice = {1: ([0, 0], [0, 0]), 2: ([0, 1], [0, 1]), 4: ([0, 1], [2, 3])}[self.variant]
        of_u, of_v = map(mx.array, choice)
        u, v = a[:, of_u] * mx.cos(t[:, of_u]), a[:, of_v] * mx.sin(t[:, of_v])
        return among_all(u.reshape(-1), self.parts, 1.0), among_all(v.reshape(-1), self.parts)

    def turned(self, z: mx.array) -> mx.array:
        """R z ``(..., out)``, in float32."""
        u, v = self.factors()
        pairs = z.reshape(*z.shape[:-1], -1, 2, self.group // 2)
        across = mx.stack([-pairs[..., 1, :], pairs[..., 0, :]], axis=-2).reshape(z.shape)
        return z * u + across * v

    def __call__(self, x: mx.array) -> mx.array:
        # In float32: half precision has few numbers around 1, and u moves in small steps.
        return self.turned(self.base_layer(x)).astype(x.dtype)

    def merged(self) -> Linear:
        """A plain layer with R W and R b, computed in float32 and kept in the base's dtype."""
        base = self.base_layer
        layer = base.with_weight(self.turned(base.dense().T).T)
        if "bias" in base:
            layer.bias = self.turned(base.bias.astype(mx.float32)).astype(base.bias.dtype)
            layer.freeze()
        return layer


class RoAdMethod(Method[RoAd]):
    """Every target is wrapped; nothing is drawn."""

    def apply(self, model: VisionTransformer, config: RoAd, seed: int) -> None:
        def wrapper(site: Site, layer: Linear) -> RoAdLinear:
            return RoAdLinear(layer, site.adapted, config.variant, config.group_size, site.parts)

        wrap(model, config.sites(model.architecture), wrapper)

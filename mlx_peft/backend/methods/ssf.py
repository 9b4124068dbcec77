"""SSF: every operation's output is scaled and shifted, channel by channel.

y = x * scale + shift; scale and shift ``(width,)``; initially scale ~ N(1, 0.02), shift ~ N(0, 0.02).
Lian et al. 2022 (arXiv 2210.08823), section 3.2.

An operation is every layer that has a weight: the patch embedding's convolution, the linear layers, and all norms. The
authors' ViT knows norm1, norm2 and norm; by the same rule the norms of q and k, those inside attention and MLP, the
one before the blocks and the attention pooling's layers have their own here. Where the final norm stands after the
pooling (fc_norm), its output is scaled; the authors scale the tokens before the pooling there.
"""

from __future__ import annotations

from copy import deepcopy

import mlx.core as mx
import mlx.nn as nn

from mlx_peft.backend.methods.adapted import Adapted
from mlx_peft.backend.methods.method import Method
from mlx_peft.backend.methods.targets import find, replace
from mlx_peft.backend.models.vit import VisionTransformer
from mlx_peft.config.methods import SSF
from mlx_peft.core.errors import UserError
from mlx_peft.vit.initial import normal


class ScaledShifted(Adapted):
    """A frozen layer whose output is scaled and shifted, by trained vectors in float32 whatever the base's dtype.

    Args:
        base_layer: a linear layer, the patch projection or a norm; it is kept as ``base_layer``.
        scale: the initial scale, ``(width,)``; shift likewise.
    """

    def __init__(self, base_layer: nn.Module, scale: mx.array, shift: mx.array):
        super().__init__(base_layer)
        self.ssf_scale = scale
        self.ssf_shift = shift

    def __call__(self, x: mx.array) -> mx.array:
        x = self.base_layer(x)
        return (x * self.ssf_scale + self.ssf_shift).astype(x.dtype)  # in float32: half precision has no 1.001

    @property
    def mergeable(self) -> bool:
        """Whether the layer has a bias, which alone can take the shift."""
        return "bias" in self.base_layer

    def merged(self) -> nn.Module:
        """A plain layer of the same kind, computed in float32 and kept in the base's dtype.

        W' = scale W, row by row (a norm's weight: channel by channel); b' = scale b + shift.
        """
        layer = deepcopy(self.base_layer)
        weight, bias = layer.weight.astype(mx.float32), layer.bias.astype(mx.float32)
        scale = self.ssf_scale.reshape(-1, *(1,) * (weight.ndim - 1))
        layer.weight = (weight * scale).astype(layer.weight.dtype)
        layer.bias = (bias * self.ssf_scale + self.ssf_shift).astype(layer.bias.dtype)
        return layer


class SSFMethod(Method[SSF]):
    """Every layer with a weight is wrapped, or those of some blocks."""

    def apply(self, model: VisionTransformer, config: SSF, seed: int) -> None:
        for path, width in config.layers(model.architecture).items():
            scale = mx.array(1 + normal((width,), 0.02, seed, f"{path}.ssf_scale"))
            shift = mx.array(normal((width,), 0.02, seed, f"{path}.ssf_shift"))
            replace(model, path, ScaledShifted(find(model, path), scale, shift))

    def merge(self, model: VisionTransformer) -> dict[str, nn.Module]:
        """As for every method; raises UserError also where a layer has no bias to take the shift."""
        wrapped = {path: layer for path, layer in model.named_modules() if isinstance(layer, ScaledShifted)}
        if stuck := sorted(path for path, layer in wrapped.items() if not layer.mergeable):
            raise UserError(
                f"SSF cannot be merged: {stuck[0]} has no bias, which alone could take the shift"
                + (f" (nor have {len(stuck) - 1} other layers)" if len(stuck) > 1 else "")
            )
        return super().merge(model)

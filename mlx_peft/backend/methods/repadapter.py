"""RepAdapter: a linear bottleneck before attention and one before the MLP, which merge into the layers behind them.

attn(F(norm1(x))) and mlp(F(norm2(x))), F(x) = x + s up(drop(down(x))); down ``(bottleneck, dim)``, up ``(dim,
bottleneck / groups)``, both with a bias: each group of the channels reads its share of the bottleneck alone. Initially
down is Xavier uniform, bound sqrt(6 / (dim + bottleneck)); up and the biases are 0.
A layer W x + b that reads F(x) becomes W (I + s U D) x + b + s W (U d + u), D and U the two weights, U with zeros
between the groups, d and u their biases.
Luo et al. 2023 (arXiv 2302.08106), sections 3.2 and 3.3; biases, initial values and dropout are their code's.
"""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from mlx_peft.backend.methods.adapted import Adapted
from mlx_peft.backend.methods.method import Method
from mlx_peft.backend.methods.targets import find, must_be_plain, replace
from mlx_peft.backend.models.layers import Linear, spread
from mlx_peft.backend.models.stochastic import Dropout
from mlx_peft.backend.models.vit import VisionTransformer
from mlx_peft.config.methods import RepAdapter
from mlx_peft.core.errors import UserError
from mlx_peft.vit.initial import uniform


class GroupedLinear(Linear):
    """A linear layer in groups: weight ``(out, in / groups)``, of which each group's rows read their share of x."""

    def __init__(self, in_features: int, out_features: int, groups: int):
        super().__init__(in_features // groups, out_features)
        self.groups = groups

    def whole(self) -> mx.array:
        """The weight ``(out, in)``, zeros between the groups."""
        rows, columns = self.weight.shape
        of_row = mx.arange(rows) // (rows // self.groups)
        of_column = mx.arange(columns * self.groups) // columns
        return mx.tile(self.weight, (1, self.groups)) * (of_row[:, None] == of_column)

    def __call__(self, x: mx.array) -> mx.array:
        return x @ self.whole().astype(x.dtype).T + spread(self.bias, (*x.shape[:-1], len(self.bias)), x.dtype)


class RepAdapted(Adapted):
    """A frozen norm with a trained linear bottleneck behind it, in float32 whatever the base's dtype.

    Args:
        base_layer: the norm; it is kept as ``base_layer``.
        down: the initial weight of down, ``(bottleneck, dim)``.
        groups: of up.
        scale: s.
        dropout: probability on the bottleneck.
    """

    def __init__(self, base_layer: nn.Module, down: mx.array, groups: int, scale: float, dropout: float = 0.0):
        super().__init__(base_layer)
        bottleneck, dim = down.shape
        self.adapter_down = Linear(dim, bottleneck)
        self.adapter_down.weight = down
        self.adapter_up = GroupedLinear(bottleneck, dim, groups)
        self.scale = scale
        self.dropout = Dropout(dropout)

    def __call__(self, x: mx.array) -> mx.array:
        x = self.base_layer(x)
        return x + self.scale * self.adapter_up(self.dropout(self.adapter_down(x)))

    def taken_up(self, layer: Linear) -> Linear:
        """A plain layer that reads the norm itself, computed in float32 and kept in the layer's dtype."""
        weight, down, up = layer.dense(), self.adapter_down, self.adapter_up
        formed = layer.with_weight(weight + self.scale * (weight @ up.whole()) @ down.weight)
        shift = self.scale * (weight @ (up.whole() @ down.bias + up.bias))
        formed.bias = (layer.bias + shift).astype(layer.bias.dtype)
        return formed


class RepAdapterMethod(Method[RepAdapter]):
    """Both norms of every chosen block are wrapped."""

    def apply(self, model: VisionTransformer, config: RepAdapter, seed: int) -> None:
        dim, bound = model.architecture.embed_dim, (6 / (model.architecture.embed_dim + config.bottleneck)) ** 0.5
        for path in config.paths(model.architecture):
            down = mx.array(uniform((config.bottleneck, dim), bound, seed, f"{path}.adapter_down.weight"))
            replace(model, path, RepAdapted(find(model, path), down, config.groups, config.scale, config.dropout))

    def merge(self, model: VisionTransformer) -> dict[str, nn.Module]:
        """As for every method, into the layers that read the norms; raises UserError also where one has no bias."""
        merged: dict[str, nn.Module] = {}
        assert isinstance(model.method, RepAdapter)
        for path, readers in model.method.readers(model.architecture).items():
            adapted = find(model, path)
            for reader in (site.path for site in readers):
                layer = find(model, reader)
                must_be_plain(reader, layer)
                if "bias" not in layer:
                    raise UserError(
                        f"RepAdapter cannot be merged: {reader} has no bias, which alone could take the shift"
                    )
                merged[reader] = adapted.taken_up(layer)
            merged[path] = adapted.base_layer
        replaced = {path: find(model, path) for path in merged}
        for path, layer in merged.items():
            replace(model, path, layer)
        return replaced

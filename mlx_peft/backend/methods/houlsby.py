"""Houlsby's adapter: a bottleneck behind attention and one behind the MLP, before each is added to the stream.

x' = x + A(attn(norm1(x))), then x' + B(mlp(norm2(x'))), A and B each y + up(drop(gelu(down(y)))); down ``(bottleneck,
dim)`` and up ``(dim, bottleneck)``, both with a bias. Initially down and up ~ N(0, 0.01), cut off at two deviations;
the biases are 0. The norms' weights and biases are trained too.
Houlsby et al. 2019 (arXiv 1902.00751), section 2.1. Their code draws from N(0, 0.001).

They adapt BERT, whose norms stand behind the sum; here the norms are where the ViT has them. Where it scales its layers
(``ls1``, ``ls2``), y is what is scaled; stochastic depth drops both y and its bottleneck.
"""

from __future__ import annotations

import mlx.core as mx

from mlx_peft.backend.methods.bottleneck import Bottleneck, near_identity
from mlx_peft.backend.methods.method import Method
from mlx_peft.backend.methods.targets import find, replace, train
from mlx_peft.backend.models.gelu import gelu
from mlx_peft.backend.models.vit import VisionTransformer
from mlx_peft.config.methods import Houlsby


class AdaptedBranch(Bottleneck):
    """What a block's attention, or its MLP, ends in, with y + up(drop(gelu(down(y)))) behind it.

    It gives float32 to the sum that follows, which is rounded to the dtype of x: y alone is rounded already.
    """

    def __call__(self, x: mx.array) -> mx.array:
        y = self.base_layer(x)
        return y.astype(mx.float32) + self.bottleneck(y)


class HoulsbyMethod(Method[Houlsby]):
    """Both ends of every chosen block are wrapped."""

    def apply(self, model: VisionTransformer, config: Houlsby, seed: int) -> None:
        for name in config.selected(model.architecture):
            train(model, name)
        for path in config.paths(model.architecture):
            start = near_identity(config.bottleneck, model.architecture.embed_dim, seed, path)
            replace(model, path, AdaptedBranch(find(model, path), gelu, *start, config.dropout))

"""VeRA: random projections that all layers share, frozen; each layer learns how to scale them.

y = W x + b + lambda_b * (B (lambda_d * (A drop(x)))); A ``(r, in)`` and B ``(out, r)`` are the leading columns and rows
of two matrices as large as the largest adapted layer; lambda_d ``(r,)``, lambda_b ``(out,)`` are trained.
Initially A, B ~ U(-b, b), b = sqrt(6 / columns), which is Kaiming uniform, from a key of their own; lambda_d = 0.1 and
lambda_b = 0. Kopiczko et al. 2024 (arXiv 2310.11454), section 3; drawn as Hugging Face PEFT draws them.
"""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from mlx_peft.adaptation.projections import projections
from mlx_peft.backend.methods.lora import formed_product
from mlx_peft.backend.methods.targets import replace, unwrap, wrap
from mlx_peft.backend.models.layers import Linear
from mlx_peft.backend.models.stochastic import Dropout
from mlx_peft.backend.models.vit import VisionTransformer
from mlx_peft.config.methods import VeRA
from mlx_peft.vit.sites import PARTS, Site, widths


class VeRALinear(nn.Module):
    """A frozen linear layer with a trained scaling of shared projections, in float32 whatever the base's dtype.

    With ``parts``, some of q, k and v of a fused qkv are adapted, each with its own vectors; they are held one after
    the other, ``vera_lambda_d (parts r,)`` and ``vera_lambda_b (parts out/3,)``, and each part takes B's leading out/3
    rows. The rows of the other parts stay untouched.

    Args:
        base_layer: the layer; it is kept as ``base_layer``.
        shared: holds ``vera_A`` and ``vera_B``, at least as large as the layer; read anew at each call.
        d_initial: lambda_d at the start.
        dropout: probability on the input of A.
        parts: some of ``("q", "k", "v")``, in this order; empty for the whole layer.
    """

    def __init__(
        self,
        base_layer: Linear,
        shared: nn.Module,
        d_initial: float,
        dropout: float = 0.0,
        parts: tuple[str, ...] = (),
    ):
        super().__init__()
        rows, count = base_layer.shape[0], max(len(parts), 1)
        self.base_layer = base_layer
        self.dropout = Dropout(dropout)
        self.vera_lambda_d = mx.full((count * shared.vera_A.shape[0],), d_initial)
        self.vera_lambda_b = mx.zeros((rows // len(PARTS) * count if parts else rows,))
        self.parts = parts
        self._shared = (shared,)  # in a tuple, so that it is no child of every layer

    def factors(self) -> tuple[mx.array, mx.array]:
        """A ``(r, in)``, and lambda_b B lambda_d as one ``(out, r)`` matrix, zero in the rows of untouched parts."""
        (shared,), count = self._shared, max(len(self.parts), 1)
        d, b = self.vera_lambda_d.reshape(count, 1, -1), self.vera_lambda_b.reshape(count, -1, 1)
        blocks = b * shared.vera_B[: b.shape[1]] * d
        if self.parts:
            own = dict(zip(self.parts, blocks, strict=True))
            blocks = mx.stack([own[part] if part in own else mx.zeros_like(blocks[0]) for part in PARTS])
        return shared.vera_A[:, : self.base_layer.shape[1]], blocks.reshape(-1, d.shape[2])

    def __call__(self, x: mx.array) -> mx.array:
        A, B = self.factors()
        weight = self.base_layer.weight
        bias = self.base_layer.bias if "bias" in self.base_layer else None
        # As in LoRA; two more products with the activations at VeRA's high ranks would cost as much as W's own.
        if x.dtype == weight.dtype == mx.float32 and not (self.training and self.dropout.rate):
            return formed_product(x, weight, bias, A, B, 1.0)
        down = self.dropout(x) @ A.astype(x.dtype).T
        return mx.addmm(self.base_layer(x), down, B.astype(x.dtype).T)

    def formed(self) -> mx.array:
        """W + lambda_b B lambda_d A ``(out, in)``, in float32."""
        A, B = self.factors()
        return self.base_layer.dense() + B @ A

    def merged(self) -> Linear:
        """A plain layer with the formed weight, computed in float32 and kept in the base's dtype."""
        return self.base_layer.with_weight(self.formed())


def apply(model: VisionTransformer, method: VeRA, seed: int) -> None:
    """Draws the projections from their own key, whatever the seed, and wraps every target."""
    sites = method.sites(model.architecture)
    A, B = projections(method.projection_key, method.rank, *widths(sites))
    model.shared.vera_A, model.shared.vera_B = mx.array(A), mx.array(B)
    model.shared.freeze()

    def wrapper(site: Site, layer: Linear) -> VeRALinear:
        return VeRALinear(layer, model.shared, method.d_initial, method.dropout, site.parts)

    wrap(model, sites, wrapper)


def merge(model: VisionTransformer) -> dict[str, nn.Module]:
    """Replaces every VeRALinear by its merged layer, and takes the projections away. Returns what was replaced."""
    replaced = unwrap(model, VeRALinear, lambda layer: layer.merged())
    if replaced:
        replaced["shared"] = model.shared
        replace(model, "shared", nn.Module())
    return replaced

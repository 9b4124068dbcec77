"""PVeRA: VeRA whose second projection reads draws; their means and variances are what the first one gives.

y = W x + b + lambda_b * (B z), z = m + e * exp(v / 2), [m, v] = lambda_d * (A drop(x)); A ``(2 r, in)`` and B
``(out, r)`` are the leading columns and rows of two matrices as large as the largest adapted layer; lambda_d
``(2 r,)``, lambda_b ``(out,)`` are trained. In training e ~ N(0, 1) for each token and each of the r; otherwise e = 0,
and y is W x + b with one matrix added to W. A, B, lambda_d and lambda_b begin as VeRA's.
Fillioux et al. 2025 (arXiv 2512.07703), section 3; drawn as Hugging Face PEFT draws them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mlx_peft.adaptation.projections import projections
from mlx_peft.config.methods import PVeRA
from mlx_peft.vit.sites import PARTS, Site, widths
from torch_ref.methods.lowrank import LowRankLinear
from torch_ref.methods.method import Method
from torch_ref.methods.parts import among_all, placed
from torch_ref.methods.targets import wrap
from torch_ref.models.layers import Linear
from torch_ref.models.stochastic import drawing, sampled
from torch_ref.models.vit import VisionTransformer


class PVeRALinear(LowRankLinear):
    """A frozen linear layer with a trained scaling of shared projections, in float32 whatever the base's dtype.

    With ``parts``, some of q, k and v of a fused qkv are adapted, each with its own vectors and draws; they are held
    one after the other, ``pvera_lambda_d (parts 2 r,)`` and ``pvera_lambda_b (parts out/3,)``, and each part takes B's
    leading out/3 rows. The rows of the other parts stay untouched.

    Args:
        base_layer: the layer; it is kept as ``base_layer``.
        shared: holds ``pvera_A`` and ``pvera_B``, at least as large as the layer; read anew at each call.
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
        super().__init__(base_layer, dropout=dropout)
        rows, count = base_layer.shape[0], max(len(parts), 1)
        self.pvera_lambda_d = nn.Parameter(torch.full((count * shared.pvera_A.shape[0],), d_initial))
        self.pvera_lambda_b = nn.Parameter(torch.zeros(rows // len(PARTS) * count if parts else rows))
        self.parts = parts
        self._shared = (shared,)  # in a tuple, so that it is no child of every layer
        self.to(base_layer.weight.device)

    def scaled(self) -> tuple[Tensor, Tensor, Tensor]:
        """A ``(2 r, in)``, and of each part lambda_d ``(parts, 2, r)`` and lambda_b B ``(parts, out/parts, r)``."""
        (shared,), count = self._shared, max(len(self.parts), 1)
        b = self.pvera_lambda_b.reshape(count, -1, 1)
        B = shared.pvera_B[: b.shape[1]]
        return shared.pvera_A[:, : self.base_layer.shape[1]], self.pvera_lambda_d.reshape(count, 2, -1), b * B

    def factors(self) -> tuple[Tensor, Tensor]:
        """Of the means: A's upper half ``(r, in)``, and lambda_b B lambda_d as one ``(out, r)`` matrix."""
        A, d, B = self.scaled()
        rank = d.shape[2]
        return A[:rank], among_all((B * d[:, :1]).reshape(-1, rank), self.parts)

    def forward(self, x: Tensor) -> Tensor:
        if not drawing(self.training):
            return super().forward(x)
        A, d, B = self.scaled()
        rank = d.shape[2]
        halves = (self.dropout(x) @ A.to(x.dtype).T).reshape(*x.shape[:-1], 1, 2, rank) * d.to(x.dtype)
        z = sampled(halves[..., 0, :], halves[..., 1, :], self.training).flatten(-2)
        return self.base_layer(x) + z @ placed(B.reshape(-1, rank), self.parts).to(x.dtype).T


class PVeRAMethod(Method[PVeRA]):
    """The projections are drawn from their own key, whatever the seed, and every target is wrapped."""

    def apply(self, model: VisionTransformer, config: PVeRA, seed: int) -> None:
        sites = config.sites(model.architecture)
        A, B = projections(config.projection_key, config.rank, *widths(sites), config.halves)
        device = model.head.weight.device
        model.shared.pvera_A = nn.Parameter(torch.from_numpy(A).to(device), requires_grad=False)
        model.shared.pvera_B = nn.Parameter(torch.from_numpy(B).to(device), requires_grad=False)

        def wrapper(site: Site, layer: Linear) -> PVeRALinear:
            return PVeRALinear(layer, model.shared, config.d_initial, config.dropout, site.parts)

        wrap(model, sites, wrapper)

"""FacT in Tucker form: the updates of all weights of the blocks, as one tensor in few factors.

x W_j^T becomes x (W_j^T + s U Sigma_j V^T), Sigma_j = sum_k P_jk C_k; U and V ``(dim, r)``, the core C ``(r, r, r)``
and P ``(weights, r)`` are shared by all blocks. The weights are ``dim x dim``: q, k, v, proj, four for fc1's rows and
four for fc2's columns. Where the hidden layer is no multiple of dim, the last of its weights is cut off; SwiGLU's two
first layers count like an fc1 each. Dropout acts on x U Sigma_j.
Initially U ~ U(-1/sqrt(dim), 1/sqrt(dim)), V = 0, and C and P are Xavier uniform: bounds sqrt(3) / r and
sqrt(6 / (r + weights)).
Jie and Deng 2023 (arXiv 2212.03145), FacT-TK; initialisation and the place of dropout are
their code's, whose probability is 0.1. That code deals the columns
of the four Sigmas of fc1, and of fc2, out to all quarters; here, as the tensor has it, each quarter has its own Sigma.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mlx_peft.config.methods import FacT
from mlx_peft.vit.initial import kaiming_uniform, uniform
from torch_ref.methods.joined import balanced, joined
from torch_ref.methods.lowrank import LowRankLinear, narrowed
from torch_ref.methods.method import Method
from torch_ref.methods.targets import find, replace
from torch_ref.models.layers import Linear
from torch_ref.models.vit import VisionTransformer


class FacTLinear(LowRankLinear):
    """A frozen linear layer with an update from shared factors, in float32 whatever the base's dtype.

    The layer's weights in the tensor lie below one another, or beside one another where it is wider than it is high.

    Args:
        base_layer: the layer; it is kept as ``base_layer``.
        shared: holds ``fact_U``, ``fact_V``, ``fact_C`` and ``fact_P``; read anew at each call.
        weights: the layer's weights' numbers: rows of P.
        scaling: s.
        dropout: probability on x U Sigma.
    """

    def __init__(self, base_layer: Linear, shared: nn.Module, weights: range, scaling: float, dropout: float = 0.0):
        super().__init__(base_layer, scaling, dropout)
        self.rows = slice(weights.start, weights.stop)
        self.wide = base_layer.shape[1] > shared.fact_U.shape[0]
        self._shared = (shared,)  # in a tuple, so that it is no child of every layer

    def cores(self) -> Tensor:
        """Sigma of each of the layer's weights, ``(count, r, r)``."""
        (shared,) = self._shared
        C = shared.fact_C
        return (shared.fact_P[self.rows] @ C.reshape(C.shape[0], -1)).reshape(-1, *C.shape[1:])

    def factors(self) -> tuple[Tensor, Tensor]:
        """The update without s as B A: A ``(r, in)`` and B ``(out, r)``."""
        (shared,) = self._shared
        U, V, (rows, columns) = shared.fact_U, shared.fact_V, self.base_layer.shape
        if self.wide:
            A, B = (U @ self.cores()).reshape(-1, U.shape[1]).T, V
        else:
            A, B = U.T, (V @ self.cores().transpose(1, 2)).reshape(-1, V.shape[1])
        return A[:, :columns], B[:rows]

    def beside(self, x: Tensor) -> Tensor:
        """y, the update computed beside W; what is dropped is x U Sigma_j."""
        A, B = self.factors()
        if x.dtype != torch.float32:
            return self.in_half(x, A, B)
        inner = x @ A.to(x.dtype).T
        if self.wide or not (self.training and self.dropout.rate):
            return self.base_layer(x) + self.dropout(inner) @ (self.scaling * B).to(x.dtype).T
        cores = self.cores().to(x.dtype).transpose(0, 1).reshape(inner.shape[-1], -1)
        inner = self.dropout(inner @ cores).reshape(*x.shape[:-1], -1, inner.shape[-1])
        V = (self.scaling * self._shared[0].fact_V).to(x.dtype)
        return self.base_layer(x) + (inner @ V.T).reshape(*x.shape[:-1], -1)[..., : self.base_layer.shape[0]]

    def in_half(self, x: Tensor, A: Tensor, B: Tensor) -> Tensor:
        """The same in half precision, where all is one product: each weight has its own Sigma's columns of B."""
        if not self.wide and self.training and self.dropout.rate:
            cores, (rows, _) = self.cores(), self.base_layer.shape
            A = (A.T @ cores.transpose(0, 1).reshape(A.shape[0], -1)).T
            B = torch.block_diag(*[self._shared[0].fact_V] * len(cores))[:rows]
        A, B = balanced(A, self.scaling * B, x.dtype)
        return joined(self.base_layer, x, lambda x: (self.dropout(narrowed(x, A)), None), B)


class FacTMethod(Method[FacT]):
    """The factors are shared by the model, and every linear layer of the blocks is wrapped."""

    def apply(self, model: VisionTransformer, config: FacT, seed: int) -> None:
        dim, r, layers = model.architecture.embed_dim, config.rank, config.layers(model.architecture)
        count = layers[-1][1].stop
        device = find(model, layers[0][0].path).weight.device
        initial = {
            "fact_U": kaiming_uniform((dim, r), dim, seed, "shared.fact_U"),
            "fact_C": uniform((r, r, r), 3**0.5 / r, seed, "shared.fact_C"),
            "fact_P": uniform((count, r), (6 / (r + count)) ** 0.5, seed, "shared.fact_P"),
        }
        for name, values in initial.items():
            setattr(model.shared, name, nn.Parameter(torch.from_numpy(values).to(device)))
        model.shared.fact_V = nn.Parameter(torch.zeros(dim, r, device=device))
        for site, weights in layers:
            layer = find(model, site.path)
            replace(model, site.path, FacTLinear(layer, model.shared, weights, config.scale, config.dropout))

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

import mlx.core as mx
import mlx.nn as nn

from mlx_peft.backend.methods.joined import balanced, joined
from mlx_peft.backend.methods.lowrank import LowRankLinear, narrowed
from mlx_peft.backend.methods.method import Method
from mlx_peft.backend.methods.targets import find, replace
from mlx_peft.backend.models.layers import Linear
from mlx_peft.backend.models.vit import VisionTransformer
from mlx_peft.config.methods import FacT
from mlx_peft.vit.initial import kaiming_uniform, uniform


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

    def cores(self) -> mx.array:
        """Sigma of each of the layer's weights, ``(count, r, r)``."""
        (shared,) = self._shared
        C = shared.fact_C
        return (shared.fact_P[self.rows] @ C.reshape(C.shape[0], -1)).reshape(-1, *C.shape[1:])

    def factors(self) -> tuple[mx.array, mx.array]:
        """The update without s as B A: A ``(r, in)`` and B ``(out, r)``."""
        (shared,) = self._shared
        U, V, (rows, columns) = shared.fact_U, shared.fact_V, self.base_layer.shape
        if self.wide:
            A, B = (U @ self.cores()).reshape(-1, U.shape[1]).T, V
        else:
            A, B = U.T, (V @ self.cores().transpose(0, 2, 1)).reshape(-1, V.shape[1])
        return A[:, :columns], B[:rows]

    def beside(self, x: mx.array) -> mx.array:
        """y, the update computed beside W; what is dropped is x U Sigma_j."""
        if not (self.training and self.dropout.rate):
            return super().beside(x)
        A, B = self.factors()
        if x.dtype != mx.float32:
            return self.in_half(x, A, B)
        inner = x @ A.astype(x.dtype).T
        if self.wide:
            return mx.addmm(self.base_layer(x), self.dropout(inner), (self.scaling * B).astype(x.dtype).T)
        cores = self.cores().astype(x.dtype).transpose(1, 0, 2).reshape(inner.shape[-1], -1)
        inner = self.dropout(inner @ cores).reshape(*x.shape[:-1], -1, inner.shape[-1])
        V = (self.scaling * self._shared[0].fact_V).astype(x.dtype)
        return self.base_layer(x) + (inner @ V.T).reshape(*x.shape[:-1], -1)[..., : self.base_layer.shape[0]]

    def in_half(self, x: mx.array, A: mx.array, B: mx.array) -> mx.array:
        """The same in half precision, where all is one product: each weight has its own Sigma's columns of B."""
        if not self.wide:
            cores, (rows, _) = self.cores(), self.base_layer.shape
            A = (A.T @ cores.transpose(1, 0, 2).reshape(A.shape[0], -1)).T
            B = mx.kron(mx.eye(len(cores)), self._shared[0].fact_V)[:rows]
        A, B = balanced(A, self.scaling * B, x.dtype)
        return joined(self.base_layer, x, lambda x: (self.dropout(narrowed(x, A)), None), B)


class FacTMethod(Method[FacT]):
    """The factors are shared by the model, and every linear layer of the blocks is wrapped."""

    def apply(self, model: VisionTransformer, config: FacT, seed: int) -> None:
        dim, r, layers = model.architecture.embed_dim, config.rank, config.layers(model.architecture)
        count = layers[-1][1].stop
        model.shared.fact_U = mx.array(kaiming_uniform((dim, r), dim, seed, "shared.fact_U"))
        model.shared.fact_V = mx.zeros((dim, r))
        model.shared.fact_C = mx.array(uniform((r, r, r), 3**0.5 / r, seed, "shared.fact_C"))
        model.shared.fact_P = mx.array(uniform((count, r), (6 / (r + count)) ** 0.5, seed, "shared.fact_P"))
        for site, weights in layers:
            layer = find(model, site.path)
            replace(model, site.path, FacTLinear(layer, model.shared, weights, config.scale, config.dropout))

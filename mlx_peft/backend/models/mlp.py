"""The feed-forward half of a block: plain, and the two layouts of SwiGLU."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from mlx_peft.backend.models.layers import ACTIVATIONS, Linear, norm
from mlx_peft.vit.architecture import Architecture


class Mlp(nn.Module):
    """fc2(norm(act(fc1(x)))); the norm is an identity but for a few architectures."""

    def __init__(self, architecture: Architecture):
        super().__init__()
        dim, hidden, bias = architecture.embed_dim, architecture.hidden_dim, architecture.proj_bias
        self.fc1 = Linear(dim, hidden, bias)
        self.act = ACTIVATIONS[architecture.act_layer]
        self.norm = norm(architecture, hidden, architecture.scale_mlp_norm)
        self.fc2 = Linear(hidden, dim, bias)

    def __call__(self, x: mx.array) -> mx.array:
        return self.fc2(self.norm(self.act(self.fc1(x))))


class SwiGLU(nn.Module):
    """fc2(norm(act(fc1_g(x)) * fc1_x(x))) (Shazeer 2020)."""

    def __init__(self, architecture: Architecture):
        super().__init__()
        dim, hidden, bias = architecture.embed_dim, architecture.hidden_dim, architecture.proj_bias
        self.fc1_g = Linear(dim, hidden, bias)
        self.fc1_x = Linear(dim, hidden, bias)
        self.act = ACTIVATIONS[architecture.act_layer]
        self.norm = norm(architecture, hidden, architecture.scale_mlp_norm)
        self.fc2 = Linear(hidden, dim, bias)

    def __call__(self, x: mx.array) -> mx.array:
        return self.fc2(self.norm(self.act(self.fc1_g(x)) * self.fc1_x(x)))


class SwiGLUPacked(nn.Module):
    """SwiGLU with the gate and the value as the two halves of one fc1, gate first."""

    def __init__(self, architecture: Architecture):
        super().__init__()
        dim, hidden, bias = architecture.embed_dim, architecture.hidden_dim, architecture.proj_bias
        self.fc1 = Linear(dim, hidden, bias)
        self.act = ACTIVATIONS[architecture.act_layer]
        self.norm = norm(architecture, hidden // 2, architecture.scale_mlp_norm)
        self.fc2 = Linear(hidden // 2, dim, bias)

    def __call__(self, x: mx.array) -> mx.array:
        gate, value = mx.split(self.fc1(x), 2, axis=-1)
        return self.fc2(self.norm(self.act(gate) * value))


MLPS = {"mlp": Mlp, "swiglu": SwiGLU, "swiglu_packed": SwiGLUPacked}

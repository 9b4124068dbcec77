"""A Vision Transformer in NumPy and float64, whose blocks a test writes as the papers have them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from scipy.special import erf

Tensors = Mapping[str, np.ndarray]


def gelu(x: np.ndarray) -> np.ndarray:
    return x * (1 + erf(x / np.sqrt(2))) / 2


@dataclass(frozen=True)
class Layers:
    """Tensors by name, all of which begin with ``at``."""

    tensors: Tensors
    at: str

    def __getitem__(self, name: str) -> np.ndarray:
        return self.tensors[f"{self.at}{name}"].astype(np.float64)

    def linear(self, name: str, x: np.ndarray) -> np.ndarray:
        return x @ self[f"{name}.weight"].T + self[f"{name}.bias"]

    def norm(self, name: str, x: np.ndarray) -> np.ndarray:
        centred = x - x.mean(-1, keepdims=True)
        return (
            centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6) * self[f"{name}.weight"]
            + self[f"{name}.bias"]
        )

    def scaled(self, name: str, x: np.ndarray) -> np.ndarray:
        """Layer scale, where there is any."""
        return x * self[f"{name}.gamma"] if f"{self.at}{name}.gamma" in self.tensors else x

    def attention(self, x: np.ndarray, heads: int = 3) -> np.ndarray:
        """MSA of a normalised x, layer scale behind it."""
        q, k, v = self.linear("attn.qkv", x).reshape(*x.shape[:2], 3, heads, -1).transpose(2, 0, 3, 1, 4)
        scores = q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1])
        p = np.exp(scores - scores.max(-1, keepdims=True))
        y = (p / p.sum(-1, keepdims=True)) @ v
        return self.scaled("ls1", self.linear("attn.proj", y.swapaxes(1, 2).reshape(x.shape)))

    def mlp(self, x: np.ndarray) -> np.ndarray:
        """The MLP of a normalised x, layer scale behind it."""
        return self.scaled("ls2", self.linear("mlp.fc2", gelu(self.linear("mlp.fc1", x))))


Block = Callable[[int, Layers, np.ndarray], np.ndarray]


def plain(number: int, of: Layers, x: np.ndarray) -> np.ndarray:
    """A block without a method."""
    x = x + of.attention(of.norm("norm1", x))
    return x + of.mlp(of.norm("norm2", x))


def embedded(tensors: Tensors, images: np.ndarray, patch: int) -> np.ndarray:
    """Normalised images ``(batch, size, size, 3)`` to tokens: class, registers, patches."""
    batch, size = images.shape[:2]
    grid = images.reshape(batch, size // patch, patch, size // patch, patch, 3).transpose(0, 1, 3, 5, 2, 4)
    weight = tensors["patch_embed.proj.weight"].astype(np.float64)
    x = grid.reshape(batch, -1, weight[0].size) @ weight.reshape(len(weight), -1).T + tensors["patch_embed.proj.bias"]
    special = [tensors[name].repeat(batch, 0) for name in ("cls_token", "reg_token") if name in tensors]
    positions = tensors["pos_embed"]
    if positions.shape[1] == x.shape[1]:  # of patches alone
        return np.concatenate([*special, x + positions], axis=1)
    return np.concatenate([*special, x], axis=1) + positions


def logits(tensors: Tensors, images: np.ndarray, block: Block, patch: int = 8) -> np.ndarray:
    """Normalised images to logits, of the class token."""
    x = embedded(tensors, images, patch)
    depth = 1 + max(int(name.split(".")[1]) for name in tensors if name.startswith("blocks."))
    for number in range(depth):
        x = block(number, Layers(tensors, f"blocks.{number}."), x)
    whole = Layers(tensors, "")
    return whole.linear("head", whole.norm("norm", x)[:, 0])

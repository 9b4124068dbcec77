"""Tensors that no checkpoint gave, drawn in NumPy as timm initialises them, so that both backends start equal.

Each tensor has a stream of its own, seeded by the seed and its name: adding one moves no other.
"""

from __future__ import annotations

import re
import zlib

import numpy as np
from numpy.typing import NDArray

from mlx_peft.core.border import Tensors
from mlx_peft.vit.architecture import Architecture
from mlx_peft.vit.parameters import BIASES, is_head
from mlx_peft.vit.relative import TABLE
from mlx_peft.vit.rotary import mixed_frequencies
from mlx_peft.vit.shapes import Shapes, shapes

TOKEN = {"vit": 1e-6, "eva": 0.02, "beit": 0.02}
"""The deviation of class and register tokens, by family."""

OF_BEIT = ("beit", "eva")
"""The families whose first values are BEiT's."""

EVA_HEAD = 1e-3
"""timm's Eva multiplies a head's first weights by it."""

BLOCK_OUTPUT = re.compile(r"blocks\.(\d+)\.(attn\.proj|mlp\.fc2)\.weight")

POST_NORM = re.compile(r"blocks\.\d+\.norm[12]")
"""The norms that do what a layer scale does elsewhere, where they stand behind attention and MLP."""


def generator(seed: int, name: str) -> np.random.Generator:
    """The random stream of one tensor."""
    return np.random.default_rng([seed, zlib.crc32(name.encode())])


def uniform(shape: tuple[int, ...], bound: float, seed: int, name: str) -> NDArray[np.float32]:
    """float32 from U(-bound, bound)."""
    values: NDArray[np.float32] = generator(seed, name).uniform(-1, 1, shape).astype(np.float32)
    values *= np.float32(bound)
    return values


def kaiming_uniform(shape: tuple[int, ...], fan_in: int, seed: int, name: str) -> NDArray[np.float32]:
    """float32 from U(-1, 1) / sqrt(fan_in): torch's ``kaiming_uniform_(a=sqrt(5))``, its default for weights."""
    return uniform(shape, fan_in**-0.5, seed, name)


def normal(shape: tuple[int, ...], std: float, seed: int, name: str) -> NDArray[np.float32]:
    """float32 from N(0, std)."""
    return _normal(generator(seed, name), shape, std)


def truncated(shape: tuple[int, ...], std: float, seed: int, name: str) -> NDArray[np.float32]:
    """float32 from N(0, std), cut off at two standard deviations."""
    return _truncated(generator(seed, name), shape, std)


def initial_state(architecture: Architecture, num_classes: int, seed: int) -> Tensors:
    """A whole ViT as timm initialises it, float32, by name."""
    return initial_values(shapes(architecture, num_classes), architecture, seed)


def initial_head(architecture: Architecture, num_classes: int, seed: int) -> Tensors:
    """The classifier alone, or both of a distilled model: the tensors that ``initial_state`` has for it."""
    every = shapes(architecture, num_classes)
    return {name: _initial(name, every[name], architecture, seed) for name in every if is_head(name)}


def initial_values(shapes: Shapes, architecture: Architecture, seed: int) -> Tensors:
    """Tensors of other names that parts of such a model are made of, as it would have them, float32, by name."""
    return {name: _initial(name, shape, architecture, seed) for name, shape in shapes.items()}


def _initial(name: str, shape: tuple[int, ...], architecture: Architecture, seed: int) -> NDArray[np.float32]:
    random = generator(seed, name)
    layer, kind = name.rpartition(".")[::2]
    if kind in ("cls_token", "reg_token"):
        return _normal(random, shape, TOKEN[architecture.family])
    if kind == "freqs":
        return mixed_frequencies(random, shape, architecture.rope_temperature)
    if kind == TABLE:
        return np.zeros(shape, np.float32)
    if kind in ("pos_embed", "dist_token"):
        return _normal(random, shape, 0.02)
    if kind == "latent":
        return _truncated(random, shape, shape[-1] ** -0.5)
    if kind in ("gamma", "gamma_1", "gamma_2"):
        return np.full(shape, architecture.init_values, np.float32)
    if layer == "patch_embed.proj":
        return kaiming_uniform(shape, 3 * architecture.patch_size**2, seed, name)
    if kind == "weight" and len(shape) == 1:
        small = architecture.post_norm and architecture.init_values and POST_NORM.fullmatch(layer)
        return np.full(shape, architecture.init_values if small else 1, np.float32)

    values = np.zeros(shape, np.float32) if kind in BIASES else _normal(random, shape, 0.02)
    if architecture.family in OF_BEIT:
        return _of_eva(name, values)
    if layer.startswith("blocks"):  # timm opens the gates of a SwiGLU: near-zero weights, biases of one
        gate = {"swiglu": "fc1_g", "swiglu_packed": "fc1", "mlp": None}[architecture.mlp_layer]
        if layer.rpartition(".")[2] == gate:
            start = shape[0] // 2 if architecture.mlp_layer == "swiglu_packed" else 0
            values[start:] = 1 if kind == "bias" else _normal(random, values[start:].shape, 1e-6)
    return values


def _of_eva(name: str, values: NDArray[np.float32]) -> NDArray[np.float32]:
    """What Eva makes of these values: less the deeper a block is, for what it adds to the tokens; heads near zero."""
    if is_head(name):
        values *= np.float32(EVA_HEAD)
    elif match := BLOCK_OUTPUT.fullmatch(name):
        values /= np.float32((2 * (int(match[1]) + 1)) ** 0.5)
    return values


def _normal(random: np.random.Generator, shape: tuple[int, ...], std: float) -> NDArray[np.float32]:
    """N(0, std). timm cuts it off at +-2, which for its 0.02 is a hundred standard deviations and never happens."""
    values = random.standard_normal(shape, np.float32)
    values *= np.float32(std)
    return values


def _truncated(random: np.random.Generator, shape: tuple[int, ...], std: float) -> NDArray[np.float32]:
    """N(0, std), cut off at two standard deviations."""
    values = random.standard_normal(shape, np.float32)
    while (outside := np.abs(values) > 2).any():
        values[outside] = random.standard_normal(int(outside.sum()), np.float32)
    values *= np.float32(std)
    return values

"""Foreign models with random weights, and our own on what was read from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from convert.base import Base
from mlx_peft.config.methods import Linear
from mlx_peft.protocols.loading import load_backend

SIZE = 32
SMALL: dict[str, Any] = {
    "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 50, "image_size": SIZE,
    "patch_size": 8, "initializer_range": 0.1,
}  # fmt: skip


def shaken(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Every parameter moved, so that no bias is zero and no norm is one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def pixels(size: int = SIZE, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (2, size, size, 3), dtype=np.uint8)


def prepared(images: np.ndarray, base: Base) -> torch.Tensor:
    """Normalised by the base's own recipe, in torch's layout."""
    mean, std = (torch.tensor(value) for value in (base.preprocessing.mean, base.preprocessing.std))
    return ((torch.from_numpy(images) / 255 - mean) / std).permute(0, 3, 1, 2)


def logits(base: Base, backend: str, images: np.ndarray) -> np.ndarray:
    """One of our backends on a base."""
    classes = len(base.tensors["head.weight"])
    return load_backend(backend).build_model(base, classes, Linear()).logits(images)


def with_identity_head(base: Base) -> Base:
    """A base whose logits are the features that a head would read."""
    width = base.architecture.feature_dim
    head = {"head.weight": np.eye(width, dtype=np.float32), "head.bias": np.zeros(width, np.float32)}
    return replace(base, tensors=base.tensors | head)


def on_disk(folder: Path) -> Mapping[str, np.ndarray]:
    from safetensors.numpy import load_file

    return load_file(folder / "model.safetensors")

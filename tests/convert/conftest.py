"""A tiny ViT under a real name, on disk in the ways that people have one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from convert.base import Base, load_base
from mlx_peft.config.schema import Model

TINY: dict[str, Any] = {"depth": 3, "embed_dim": 24, "num_heads": 3}


@pytest.fixture
def tiny() -> Callable[..., Base]:
    """``tiny("deit_tiny_patch16_224", classes=5)``: random weights, every tensor of them different from a constant."""

    def build(name: str, classes: int = 5, image_size: int = 64, seed: int = 1, **args: Any) -> Base:
        model = Model(name=name, weights="none", image_size=image_size, args=TINY | args)
        base = load_base(model, classes, seed)
        random = np.random.default_rng(seed)
        for tensor in base.tensors.values():
            tensor += random.normal(0, 0.02, tensor.shape).astype(np.float32)
        return base

    return build


@pytest.fixture
def saved(tmp_path: Path) -> Callable[[dict[str, np.ndarray]], str]:
    """Writes tensors to a safetensors file and returns its path."""

    def save(tensors: dict[str, np.ndarray]) -> str:
        path = tmp_path / "weights.safetensors"
        save_file({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, path)
        return str(path)

    return save


@pytest.fixture
def changes() -> Callable[[tuple[str, ...]], list[str]]:
    """The notes that tell of a change: that a head was kept is none."""
    return lambda notes: [note for note in notes if ": kept, " not in note]

"""The library of each backend, and a model that takes no time."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest

import torch_ref

# isort: split
import mlx_peft

MODULES = {"mlx": mlx_peft, "torch": torch_ref}
CLASSES = ("bird", "cat", "dog", "fox")
SIZE = 32


@pytest.fixture(params=MODULES)
def mp(request: pytest.FixtureRequest) -> ModuleType:
    """The module that a notebook imports."""
    return MODULES[request.param]


def create(mp: ModuleType, name: str = "vit_tiny_patch16_224", **options: object):
    """A model of two narrow blocks; its weights are drawn, alike in both backends."""
    args = {"patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}
    return mp.create_model(name, **{"weights": "none", "image_size": SIZE, "classes": CLASSES, "args": args, **options})


@pytest.fixture(scope="session")
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (8, SIZE, SIZE, 3), dtype=np.uint8)


@pytest.fixture(scope="session")
def labels() -> np.ndarray:
    return np.arange(8) % len(CLASSES)

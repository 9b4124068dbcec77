"""A small learner of either backend."""

import numpy as np
import pytest
import torch  # noqa: F401  before MLX: see mlx_peft.blas

import mlx_peft.backend
import torch_ref.backend
from convert.base import load_base
from mlx_peft.config.schema import Experiment

BACKENDS = {"mlx": mlx_peft.backend, "torch": torch_ref.backend}


@pytest.fixture(params=BACKENDS)
def build(request):
    """``build(method, model=..., train=...)`` gives a learner on a small random ViT."""

    def make(method: dict, model: dict | None = None, train: dict | None = None):
        experiment = Experiment.model_validate(
            {
                "model": {
                    "name": "vit_tiny_patch16_224",
                    "weights": "none",
                    "image_size": 32,
                    "args": {"patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 3},
                    **(model or {}),
                },
                "method": method,
                "data": {"name": "digits", "batch_size": 4},
                "train": train or {},
            }
        )
        return BACKENDS[request.param].build(experiment, 5, load_base(experiment.model, 5, 0))

    return make


@pytest.fixture
def batch():
    random = np.random.default_rng(0)
    return random.integers(0, 256, (4, 32, 32, 3), dtype=np.uint8), np.array([0, 1, 2, 4], np.int32)


def moved(tensors: dict[str, np.ndarray], size: float = 0.05) -> dict[str, np.ndarray]:
    """Away from the start, where B is zero and hides most mistakes."""
    random = np.random.default_rng(1)
    return {n: t + size * random.standard_normal(t.shape).astype(np.float32) for n, t in sorted(tensors.items())}


@pytest.fixture
def away():
    return moved

"""A small trainer of either backend over a quantised base."""

import numpy as np
import pytest
import torch  # noqa: F401  before MLX: see mlx_peft.backend.blas

# isort: split

import mlx_peft.backend.entry
import torch_ref.entry
from convert.base import load_base
from mlx_peft.config.quantization import SCALE
from mlx_peft.config.schema import Experiment

BACKENDS = {"mlx": mlx_peft.backend.entry, "torch": torch_ref.entry}
MODEL = {
    "name": "vit_tiny_patch16_224",
    "weights": "none",
    "image_size": 32,
    "args": {"patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 2},
}


def experiment(
    method: dict, quantize: dict | None = None, model: dict | None = None, qat: dict | None = None, **train
) -> Experiment:
    data = {"name": "digits", "batch_size": 4}
    parts = {"model": MODEL | (model or {}), "method": method, "quantize": quantize, "qat": qat, "data": data}
    return Experiment.model_validate(parts | {"train": train})


@pytest.fixture
def described():
    """``described(method, quantize, ...)`` gives an experiment on a small ViT."""
    return experiment


@pytest.fixture(params=BACKENDS)
def backend(request):
    return BACKENDS[request.param]


@pytest.fixture
def build(backend):
    """``build(method, quantize, ...)`` gives a trainer for five classes, its adapter moved away from the start."""

    def make(method: dict, quantize: dict | None = None, model: dict | None = None, qat: dict | None = None, **train):
        config = experiment(method, quantize, model, qat, **train)
        trainer = backend.build_trainer(config, 5, load_base(config.model, 5, 0, config.quantize))
        random = np.random.default_rng(1)
        tensors = sorted(trainer.model.adapter().items())
        moved = {n: t + 0.05 * random.standard_normal(t.shape).astype(np.float32) for n, t in tensors}
        # Scales of codes are as small as that, and stay as they are.
        trainer.model.load_adapter({n: t if n.endswith(SCALE) else moved[n] for n, t in tensors})
        return trainer

    return make

"""A small trainer of either backend."""

from dataclasses import replace

import numpy as np
import pytest
import timm
import torch  # before MLX: see mlx_peft.backend.blas

# isort: split

import mlx_peft.backend.entry
import torch_ref.entry
from convert.adapters.peft import Adapter, read_adapter, write_adapter
from convert.base import load_base
from mlx_peft.config.schema import Experiment
from mlx_peft.tasks.single_label import SINGLE_LABEL

BACKENDS = {"mlx": mlx_peft.backend.entry, "torch": torch_ref.entry}


@pytest.fixture(params=BACKENDS)
def build(request):
    """``build(method, model=..., train=..., weights=...)`` gives a trainer on a small ViT; random without weights."""

    def make(
        method: dict,
        model: dict | None = None,
        train: dict | None = None,
        weights: dict | None = None,
        quantize=None,
        qat=None,
        task=SINGLE_LABEL,
    ):
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
                "quantize": quantize,
                "qat": qat,
                "data": {"name": "digits", "batch_size": 4},
                "train": train or {},
            }
        )
        base = load_base(experiment.model, 5, 0, experiment.quantize)
        return BACKENDS[request.param].build_trainer(
            experiment, 5, replace(base, tensors=base.tensors | (weights or {}), task=task)
        )

    return make


def moved(tensors: dict[str, np.ndarray], size: float = 0.05) -> dict[str, np.ndarray]:
    """Away from the start, where B is zero and hides most mistakes."""
    random = np.random.default_rng(1)
    return {n: t + size * random.standard_normal(t.shape).astype(np.float32) for n, t in sorted(tensors.items())}


@pytest.fixture
def away():
    return moved


@pytest.fixture
def timms():
    """``timms(trainer, weights, images)`` gives timm's own model, weights in it, and the images as it wants them."""

    def make(trainer, weights: dict[str, np.ndarray], images: np.ndarray):
        description, preprocessing = trainer.experiment.model, trainer.model.base.preprocessing
        model = timm.create_model(description.name, num_classes=5, img_size=32, **description.args)
        model.load_state_dict({name: torch.from_numpy(tensor) for name, tensor in weights.items()})
        pixels = (torch.from_numpy(images) / 255 - torch.tensor(preprocessing.mean)) / torch.tensor(preprocessing.std)
        return model.eval(), pixels.permute(0, 3, 1, 2)

    return make


@pytest.fixture
def saved(tmp_path):
    """``saved(trainer)`` writes its adapter and gives what was said of it and what is read back."""

    def write_and_read(trainer) -> tuple[list[str], Adapter]:
        adapter = Adapter(
            method=trainer.experiment.method,
            tensors=trainer.model.adapter(),
            classes=("a", "b", "c", "d", "e"),
            model=trainer.experiment.model,
            architecture=trainer.model.base.architecture,
            preprocessing=trainer.model.base.preprocessing,
            base_sha256=trainer.model.base.sha256,
            source=trainer.model.base.source,
        )
        return write_adapter(tmp_path / "adapter", adapter), read_adapter(tmp_path / "adapter")

    return write_and_read

"""A model on disk, from which conversions begin; and each backend."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from foreign_models import SIZE, shaken
from interop.converting import ARGS, CLASSES, opened, write

from convert.timm.write import write_model


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of timm's, with everything that travels set to something unusual. Nothing may be written there."""
    torch.manual_seed(0)
    model = shaken(timm.create_model("vit_tiny_patch16_224", img_size=SIZE, num_classes=3, **ARGS))
    base = opened(write(tmp_path_factory.mktemp("plain") / "a.safetensors", model))
    recipe = base.preprocessing.model_copy(update={"crop_pct": SIZE / 36, "interpolation": "bilinear"})
    base = replace(base, preprocessing=recipe)
    folder = tmp_path_factory.mktemp("source") / "model"
    write_model(folder, base=base, tensors=base.tensors, classes=CLASSES)
    return folder


@pytest.fixture(params=["mlx", "torch"])
def backend(request: pytest.FixtureRequest) -> str:
    return request.param

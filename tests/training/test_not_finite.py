"""Logits that are not finite leave the product by no door: finite weights that overflow in the model."""

from __future__ import annotations

import dataclasses
import math
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from convert.adapters.peft import read_adapter, write_adapter
from convert.base import load_base
from convert.timm.write import write_model
from mlx_peft.artifacts.convert import convert
from mlx_peft.artifacts.examine import evaluate_run
from mlx_peft.artifacts.load import load_run
from mlx_peft.artifacts.merge import quantize_model
from mlx_peft.artifacts.predict import predict
from mlx_peft.checks.parity import relative
from mlx_peft.config.quantization import Quantization
from mlx_peft.config.schema import Model
from mlx_peft.core.errors import UserError
from mlx_peft.training.train import train

REFUSED = "the logits of .* are not finite"


@pytest.fixture
def overflowing(engine: SimpleNamespace) -> Path:
    """A finished run, of whose head each weight is finite, and each sum of products is not."""
    train(engine.experiment(), engine.out)
    folder = engine.out / "adapter"
    adapter = read_adapter(folder)
    head = np.full_like(adapter.tensors["head.weight"], np.finfo(np.float32).max)
    shutil.rmtree(folder)
    write_adapter(folder, dataclasses.replace(adapter, tensors=adapter.tensors | {"head.weight": head}))
    out: Path = engine.out
    return out


@pytest.mark.parametrize("backend", ["mlx", "torch"])
def test_predict_refuses_and_names_the_image(overflowing: Path, tmp_path: Path, backend: str) -> None:
    Image.new("RGB", (9, 9), "red").save(tmp_path / "red.png")
    with pytest.raises(UserError, match=rf"{REFUSED.replace('.*', '.*red.png')}.*float32"):
        predict(load_run(overflowing, backend), [tmp_path / "red.png"])  # type: ignore[arg-type]


def test_evaluation_refuses(overflowing: Path) -> None:
    with pytest.raises(UserError, match=REFUSED):
        evaluate_run(overflowing, "test")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model's folder with such a head."""
    options = {"weights": "none", "image_size": 16, "args": {"embed_dim": 32, "depth": 1, "num_heads": 2}}
    base = load_base(Model.model_validate({"name": "vit_tiny_patch16_224", **options}), 3, 0)
    head = np.full_like(base.tensors["head.weight"], np.finfo(np.float32).max)
    write_model(tmp_path / "model", base=base, tensors=base.tensors | {"head.weight": head}, exactly=True)
    return tmp_path / "model"


def test_quantising_refuses_and_leaves_nothing(model: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=REFUSED):
        quantize_model(model, tmp_path / "small", Quantization(bits=8, group_size=32))
    assert not (tmp_path / "small").exists()


def test_a_conversion_refuses_and_leaves_nothing(model: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=REFUSED):
        convert(str(model), tmp_path / "timm", "timm")
    assert not (tmp_path / "timm").exists()


def test_what_is_not_a_number_is_no_agreement() -> None:
    assert math.isinf(relative(np.array([np.nan, 1.0]), np.ones(2)))
    assert math.isinf(relative(np.ones(2), np.array([np.inf, 1.0])))
    assert max(0.0, relative(math.nan, 1.0)) > 1

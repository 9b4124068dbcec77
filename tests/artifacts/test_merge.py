"""Models of runs as files, where timm has no words for them too."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch  # noqa: F401  before MLX: see mlx_peft.backend.blas
from comparing import relative
from safetensors.numpy import load_file

from convert.adapters.peft import read_adapter, write_adapter
from convert.base import load_base
from mlx_peft.artifacts.load import load_model, load_run
from mlx_peft.artifacts.merge import merge_run, quantize_model
from mlx_peft.config.methods import Linear
from mlx_peft.config.quantization import Quantization
from mlx_peft.config.schema import Experiment
from mlx_peft.core.errors import UserError
from mlx_peft.protocols.loading import load_backend
from mlx_peft.training.train import train

ROUNDING = 1e-5
"""Relative, float32: the same products in another order, through two blocks."""

SMALL = {"patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 2}


@pytest.fixture(scope="module", params=[1e-6, 1e-12], ids=["timm's epsilon", "an epsilon that timm cannot be told"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bool]:
    """A finished run, and whether timm has words for its model."""
    args = SMALL | {"norm_eps": request.param}
    experiment = Experiment.model_validate({
        "backend": "torch",
        "model": {"name": "vit_tiny_patch16_224", "weights": "none", "image_size": 32, "args": args},
        "method": {"name": "lora"},
        "data": {"name": "digits"},
        "train": {"epochs": 1},
    })  # fmt: skip
    out = tmp_path_factory.mktemp("runs") / "run"
    train(experiment, out)
    return out, request.param == 1e-6


def test_a_merged_model_opens_again_with_the_runs_logits(run: tuple[Path, bool], tmp_path: Path) -> None:
    path, in_timm = run
    assert merge_run(path, tmp_path / "m").in_timm == in_timm
    assert ("exact_architecture" in json.loads((tmp_path / "m" / "config.json").read_text())) != in_timm
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    seen = load_run(path).model.logits(images)
    for backend in ("torch", "mlx"):
        logits = load_model(tmp_path / "m", backend).model.logits(images)
        assert relative(logits, seen) <= ROUNDING


def test_a_sum_that_overflows_is_refused_by_the_weight_s_name_and_leaves_nothing(
    run: tuple[Path, bool], tmp_path: Path
) -> None:
    """Of an adapter whose own numbers are finite."""
    adapter = read_adapter(run[0] / "adapter")
    large = {key: np.full_like(value, 1e38) if "lora" in key else value for key, value in adapter.tensors.items()}
    write_adapter(tmp_path / "adapter", replace(adapter, tensors=large))
    for backend in ("torch", "mlx"):
        with pytest.raises(UserError, match=r"blocks\.\d\.attn\.\w+\.weight has NaN or infinite values"):
            merge_run(tmp_path / "adapter", tmp_path / "m", backend)
        assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_it_is_quantised_too(run: tuple[Path, bool], tmp_path: Path) -> None:
    written = quantize_model(run[0], tmp_path / "q", Quantization(bits=8, group_size=32))
    assert written.logits is not None and 0 < written.logits < 0.1  # eight bits are many
    assert load_model(tmp_path / "q", "mlx").base.packed


def test_requantised_a_layer_without_an_update_keeps_its_codes(tmp_path: Path) -> None:
    four = Quantization(bits=4, group_size=32)
    experiment = Experiment.model_validate({
        "backend": "torch",
        "model": {"name": "vit_tiny_patch16_224", "weights": "none", "image_size": 32, "args": SMALL},
        "method": {"name": "lora", "targets": ["qkv"]},
        "quantize": four.model_dump(),
        "data": {"name": "digits"},
        "train": {"epochs": 1, "optimizer": {"name": "adamw", "lr": 0.01}},
    })  # fmt: skip
    train(experiment, tmp_path / "run")
    written = merge_run(tmp_path / "run", tmp_path / "m", requantize=True)
    codes = load_file(tmp_path / "m" / "model.safetensors")
    bare = load_backend("torch").build_model(load_base(experiment.model, 10, 0, four), 10, Linear())
    for name, tensor in bare.merged().items():
        if name.endswith(("fc1.weight", "fc2.weight", "proj.weight")) and name.startswith("blocks"):
            assert np.array_equal(codes[name], tensor)
            assert written.sqnr[name.removesuffix(".weight")] == float("inf")
        elif name.endswith("qkv.weight"):
            assert not np.array_equal(codes[name], tensor)

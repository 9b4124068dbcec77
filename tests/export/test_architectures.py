"""Every kind of ViT that the registry has, drawn at random, through both exporters."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from convert.base import Base
from mlx_peft.artifacts.export import export_model
from mlx_peft.vit.architecture import Architecture, Preprocessing
from mlx_peft.vit.registry import find, names
from torch_ref.models.preprocess import preprocess
from torch_ref.models.vit import VisionTransformer
from torch_ref.tools.export.coreml import WEIGHTS, coremltools, load_program

PREPROCESSING = Preprocessing(mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3))
SIZES = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3, "mlp_ratio": 4.0}
LOGITS = 1e-4  # relative: see test_onnx
PROBABILITIES = 0.02  # see test_coreml


def kinds() -> dict[str, Architecture]:
    """The architectures that differ in more than their sizes, each under the first name that has it."""
    found: dict[Architecture, str] = {}
    for name in names():
        architecture = find(name).architecture
        sizes = SIZES | {"reg_tokens": min(architecture.reg_tokens, 2), "norm_eps": 1e-6}
        found.setdefault(architecture.model_copy(update=sizes), name)
    return {name: architecture for architecture, name in found.items()}


@pytest.fixture
def model(request) -> tuple[Base, dict[str, np.ndarray]]:
    architecture = kinds()[request.param]
    random = np.random.default_rng(0)
    parameters = dict(VisionTransformer(architecture, 5).named_parameters())
    tensors = {n: random.normal(0, 0.2, p.shape).astype(np.float32) for n, p in parameters.items()}
    return Base(request.param, "random", architecture, PREPROCESSING, tensors, "", ()), tensors


@pytest.mark.slow
@pytest.mark.parametrize("model", kinds(), indirect=True)
def test_it_is_exported_to_onnx(model, tmp_path: Path):
    base, tensors = model
    assert export_model("onnx", tmp_path / "m.onnx", base=base, tensors=tensors, classes=()).difference <= LOGITS


@pytest.mark.slow
@pytest.mark.parametrize("model", kinds(), indirect=True)
def test_it_is_exported_to_core_ml(model, run_program, tmp_path: Path):
    base, tensors = model
    (path,) = export_model("coreml", tmp_path / "m.mlpackage", base=base, tensors=tensors, classes=()).files
    spec = coremltools.utils.load_spec(str(path))
    program = load_program(spec, spec.specificationVersion, str(path / WEIGHTS))
    pixels = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3), dtype=np.uint8)
    source = VisionTransformer(base.architecture, 5)
    source.load_state_dict({name: torch.from_numpy(tensor) for name, tensor in tensors.items()})
    with torch.inference_mode():
        logits = source.eval()(preprocess(torch.from_numpy(pixels), PREPROCESSING, 32, torch.float32))
    found = run_program(program, pixels.transpose(0, 3, 1, 2).astype(np.float32))
    assert np.abs(found - torch.softmax(logits, -1).numpy()).max() <= PROBABILITIES

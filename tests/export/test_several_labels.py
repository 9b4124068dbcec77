"""Models for images that may have several classes: ONNX keeps logits, Core ML has an array of their sigmoids."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import coremltools
import numpy as np
import onnxruntime
import pytest
import torch
from coremltools.converters.mil.frontend.milproto.load import load as load_program

from mlx_peft.artifacts.export import export_model
from mlx_peft.tasks.multi_label import MULTI_LABEL
from torch_ref.models.preprocess import preprocess

LOGITS = 1e-4
"""As tests/export/test_onnx.py has it."""


@pytest.fixture(scope="module")
def several(merged):
    base, tensors = merged("registers")
    return replace(base, task=MULTI_LABEL), tensors


def test_onnx_gives_logits_and_says_what_they_mean(several, merged, timms, classes, tmp_path: Path):
    base, tensors = several
    written = export_model("onnx", tmp_path / "m.onnx", base=base, tensors=tensors, classes=classes)
    assert written.difference is not None and written.difference <= LOGITS
    assert written.notes == (
        "an image may have several classes: the sigmoid of each logit is the probability of its class",
    )
    run = onnxruntime.InferenceSession(str(tmp_path / "m.onnx"), providers=["CPUExecutionProvider"])
    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    images = preprocess(torch.from_numpy(pixels), base.preprocessing, 32, torch.float32).permute(0, 3, 1, 2)
    (logits,) = run.run(["logits"], {"pixel_values": images.contiguous().numpy()})
    assert np.abs(logits - timms("registers", base, tensors, images)).max() <= LOGITS
    facts = run.get_modelmeta().custom_metadata_map
    assert json.loads(facts["problem_type"]) == "multi_label_classification"


@pytest.mark.slow
def test_a_core_ml_package_is_no_classifier_but_gives_each_class_s_probability(several, classes, tmp_path: Path):
    base, tensors = several
    path = tmp_path / "m.mlpackage"
    written = export_model("coreml", path, base=base, tensors=tensors, classes=classes)
    assert f"{len(classes)} classes" in written.proof
    assert "the package is no classifier" in written.notes[0]
    spec = coremltools.utils.load_spec(str(path))
    program = load_program(spec, spec.specificationVersion, str(path / "Data/com.apple.CoreML/weights"))
    kinds = [operation.op_type for operation in program.functions["main"].operations]
    assert "classify" not in kinds
    assert [kind for kind in kinds if kind not in ("const", "cast")][-1] == "sigmoid"
    (output,) = spec.description.output
    assert (output.name, list(output.type.multiArrayType.shape)) == ("probabilities", [1, len(classes)])
    assert not spec.description.predictedFeatureName
    facts = spec.description.metadata.userDefined
    assert json.loads(facts["classes"]) == list(classes)
    assert facts["problem_type"] == "multi_label_classification"

"""ONNX: what ONNX Runtime computes from the file is what timm computes from the tensors."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from comparing import relative
from export.conftest import MODELS
from halves import daily

import torch_ref.entry
from convert.base import load_base
from mlx_peft.artifacts.export import export_model
from mlx_peft.config.schema import Experiment
from torch_ref.models.preprocess import preprocess
from torch_ref.tools.export import onnx as exporter

LOGITS = 1e-4
"""Absolute, of logits of the order of 1, and relative: other kernels, another order of summation."""


def session(path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("kind", daily(MODELS, "registers"))
def test_onnx_runtime_gives_timms_logits_of_a_merged_lora_at_batch_1_and_7(exported, merged, timms, kind):
    base, tensors = merged(kind)
    written = exported("onnx", kind)
    assert written.difference <= LOGITS
    (path,) = written.files
    run = session(path)
    for batch in (1, 7):
        pixels = np.random.default_rng(batch).integers(0, 256, (batch, 32, 32, 3), dtype=np.uint8)
        images = preprocess(torch.from_numpy(pixels), base.preprocessing, 32, torch.float32).permute(0, 3, 1, 2)
        (logits,) = run.run(["logits"], {"pixel_values": images.contiguous().numpy()})
        expected = timms(kind, base, tensors, images)
        assert expected.std() > 0.01
        assert np.abs(logits - expected).max() <= LOGITS
        assert relative(logits, expected) <= LOGITS


@pytest.fixture(scope="module")
def graph(exported) -> Path:
    return next(iter(exported("onnx", "registers").files))


def test_the_graph_says_what_goes_in_and_what_comes_out(graph, merged, classes):
    run = session(graph)
    (given,), (got,) = run.get_inputs(), run.get_outputs()
    assert (given.name, given.type, given.shape) == ("pixel_values", "tensor(float)", ["batch", 3, 32, 32])
    assert (got.name, got.type, got.shape[1:]) == ("logits", "tensor(float)", [len(classes)])
    assert isinstance(got.shape[0], str)
    facts = {name: json.loads(value) for name, value in run.get_modelmeta().custom_metadata_map.items()}
    base, _ = merged("registers")
    assert facts["classes"] == list(classes)
    assert (tuple(facts["mean"]), tuple(facts["std"])) == (base.preprocessing.mean, base.preprocessing.std)
    assert (facts["image_size"], facts["crop_pct"], facts["model"]) == (32, base.preprocessing.crop_pct, base.name)
    assert run.get_modelmeta().producer_name == "mlx-peft"


def test_the_graph_is_plain_onnx_of_one_old_operator_set(graph):
    model = onnx.load(graph)
    onnx.checker.check_model(model, full_check=True)
    assert {(used.domain, used.version) for used in model.opset_import} == {("", exporter.OPSET)}


def test_nothing_of_this_machine_is_in_it(graph):
    content = graph.read_bytes()
    for trace in (b".py", str(Path(__file__).parents[2]).encode(), str(graph.parent).encode()):
        assert trace not in content


def test_beyond_one_protobufs_limit_the_weights_lie_beside_it(merged, tmp_path, monkeypatch):
    monkeypatch.setattr(exporter, "INLINE_LIMIT", 1000)
    base, tensors = merged("registers")
    exported = export_model("onnx", tmp_path / "big.onnx", base=base, tensors=tensors, classes=())
    assert list(exported.files) == [tmp_path / "big.onnx", tmp_path / "big.onnx.data"]
    assert {path.name for path in tmp_path.iterdir()} == {"big.onnx", "big.onnx.data"}
    assert exported.difference <= LOGITS
    shape = (2, 3, 32, 32)
    (logits,) = session(tmp_path / "big.onnx").run(None, {"pixel_values": np.zeros(shape, np.float32)})
    assert logits.shape == (2, 5)


def test_codes_are_written_as_what_they_stand_for(tmp_path, monkeypatch, classes):
    model = {"name": "vit_tiny_patch16_224", "weights": "none", "image_size": 32}
    experiment = Experiment.model_validate({
        "model": model | {"args": {"depth": 1, "embed_dim": 64, "num_heads": 2, "patch_size": 8}},
        "method": {"name": "linear"},
        "quantize": {"bits": 4, "group_size": 32},
        "data": {"name": "digits"},
    })  # fmt: skip
    base = load_base(experiment.model, 5, 0, experiment.quantize)
    trainer = torch_ref.entry.build_trainer(experiment, 5, base)
    given = {}

    def write(path, base, tensors, classes):
        given.update(tensors)
        path.touch()

    monkeypatch.setattr(exporter, "write", write)
    codes, plain = trainer.model.merged(), trainer.model.merged(dequantize=True)
    assert codes["blocks.0.attn.qkv.weight"].dtype == np.uint32
    exported = export_model("onnx", tmp_path / "m.onnx", base=base, tensors=codes, classes=classes, verify=False)
    assert "4 bits" in exported.notes[0]
    assert given.keys() == plain.keys()
    for name, tensor in plain.items():
        np.testing.assert_array_equal(given[name], tensor)

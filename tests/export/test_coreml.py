"""Core ML: the package's shapes, classes and constants, and its program worked through by hand.

What Core ML itself computes from it can be seen on a Mac alone.
"""

from __future__ import annotations

import json
from pathlib import Path

import coremltools
import numpy as np
import pytest
import torch
from coremltools.converters.mil.frontend.milproto.load import load as load_program
from halves import daily

from torch_ref.models.preprocess import preprocess
from torch_ref.tools.export import coreml

PROBABILITIES = 0.02
"""Of 1: weights and normalisation are rounded to float16 (5e-4 of each), and the logits are of the order of 10."""


def opened(path: Path):
    spec = coremltools.utils.load_spec(str(path))
    return spec, load_program(spec, spec.specificationVersion, str(path / "Data/com.apple.CoreML/weights"))


@pytest.fixture(scope="module", params=daily(["registers", "attention pooling"], "registers"))
def package(request, merged, exported):
    written = exported("coreml", request.param)
    return request.param, *merged(request.param), next(iter(written.files)), written


def test_it_takes_a_picture_and_gives_a_class_with_probabilities(package, classes):
    _, base, _, path, _ = package
    spec, program = opened(path)
    (given,) = spec.description.input
    assert given.name == "image"
    assert (given.type.imageType.width, given.type.imageType.height) == (32, 32)
    assert given.type.imageType.colorSpace == given.type.imageType.RGB
    assert [output.name for output in spec.description.output] == ["classLabel", "classLabel_probs"]
    assert spec.description.predictedFeatureName == "classLabel"
    (classify,) = [o for o in program.functions["main"].operations if o.op_type == "classify"]
    assert [str(name) for name in classify.classes.val] == list(classes)
    facts = spec.description.metadata.userDefined
    assert facts["model"] == base.name
    assert json.loads(facts["mean"]) == list(base.preprocessing.mean)
    assert json.loads(facts["crop_pct"]) == base.preprocessing.crop_pct
    assert spec.specificationVersion == 7  # iOS 16, macOS 13


def test_its_constants_are_the_tensors_in_float16(package):
    kind, _, tensors, path, _ = package
    _, program = opened(path)
    constants = [
        np.asarray(operation.outputs[0].val)
        for operation in program.functions["main"].operations
        if operation.op_type == "const" and isinstance(operation.outputs[0].val, np.ndarray)
    ]
    held = {(constant.shape, constant.tobytes()) for constant in constants if constant.dtype == np.float16}
    lost = {n for n, t in tensors.items() if (t.shape, t.astype(np.float16).tobytes()) not in held}
    # The pooling's query is the same for every image, so the converter has worked it out.
    expected = {"attn_pool.latent", "attn_pool.q.weight", "attn_pool.q.bias"} if kind == "attention pooling" else set()
    assert lost == expected


def test_its_program_worked_through_by_hand_gives_timms_probabilities(package, timms, run_program):
    kind, base, tensors, path, _ = package
    _, program = opened(path)
    for seed in range(3):
        pixels = np.random.default_rng(seed).integers(0, 256, (1, 32, 32, 3), dtype=np.uint8)
        images = preprocess(torch.from_numpy(pixels), base.preprocessing, 32, torch.float32).permute(0, 3, 1, 2)
        expected = torch.softmax(torch.from_numpy(timms(kind, base, tensors, images)), -1).numpy()
        found = run_program(program, pixels.transpose(0, 3, 1, 2).astype(np.float32))
        assert np.abs(found - expected).max() <= PROBABILITIES
        assert expected.max() - expected.min() > 10 * PROBABILITIES  # so a wrong program would show


def test_a_freshly_initialised_token_of_subnormal_numbers_is_no_loss(merged, classes, tmp_path):
    base, tensors = merged("registers")
    random = np.random.default_rng(0)
    fresh = {"cls_token": random.normal(0, 1e-6, tensors["cls_token"].shape).astype(np.float32)}
    fresh["cls_token"][..., 0] = 1e-9  # zero in float16, which the converter makes the smallest subnormal
    path = tmp_path / "fresh.mlpackage"
    coreml.write(path, base, tensors | fresh, classes)
    coreml.prove(path, base, tensors | fresh, classes)
    normal = {"cls_token": fresh["cls_token"] + np.float32(2 * np.finfo(np.float16).tiny)}
    with pytest.raises(ValueError, match="does not hold cls_token"):
        coreml.prove(path, base, tensors | normal, classes)


def test_what_was_not_checked_is_said(package):
    exported = package[-1]
    assert exported.difference is None
    assert "on a Mac alone, and was not checked" in exported.proof
    assert exported.files == {package[3]: sum(f.stat().st_size for f in package[3].rglob("*") if f.is_file())}


def test_there_is_nothing_in_the_package_but_its_contents(package):
    path = package[3]
    assert {str(file.relative_to(path)) for file in path.rglob("*") if file.is_file()} == {
        "Manifest.json",
        "Data/com.apple.CoreML/model.mlmodel",
        "Data/com.apple.CoreML/weights/weight.bin",
    }
    assert str(Path(__file__).parents[2]).encode() not in (path / "Data/com.apple.CoreML/model.mlmodel").read_bytes()

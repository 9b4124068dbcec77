"""Quantised models on disk: what is written, who opens it, and what is refused."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch  # noqa: F401  before MLX: see mlx_peft.backend.blas
from comparing import relative
from hypothesis import given, settings
from hypothesis import strategies as st

# isort: split
import mlx.core as mx
import mlx.nn as nn
from by_hand import by_hand
from PIL import Image
from safetensors.numpy import load_file
from typer.testing import CliRunner

from convert.base import load_base
from convert.timm.write import write_model
from mlx_peft.artifacts.load import load_model
from mlx_peft.cli.app import app
from mlx_peft.codes import affine
from mlx_peft.config.quantization import Quantization
from mlx_peft.config.schema import Model
from mlx_peft.core.errors import UserError

THREE = Quantization(bits=3, group_size=32)
ROUNDING = 1e-5


def command(*arguments):
    done = CliRunner().invoke(app, list(map(str, arguments)), obj="mlx")
    assert done.exit_code in (0, 2), done.output
    return done


@pytest.fixture
def saved(tmp_path, described):
    """A plain model's folder, for five classes."""
    config = described({"name": "linear"})
    base = load_base(config.model, 5, 0)
    random = np.random.default_rng(3)
    tensors = base.tensors | {"head.weight": random.standard_normal((5, 64)).astype(np.float32)}
    write_model(tmp_path / "plain", base=base, tensors=tensors, classes=("a", "b", "c", "d", "e"))
    return tmp_path / "plain"


@given(bits=st.sampled_from([2, 3, 4, 5, 6, 8]), group=st.sampled_from([32, 64, 128]), seed=st.integers(0, 99))
@settings(max_examples=30)
def test_numpy_reads_what_mlx_packs(bits, group, seed):
    weight = mx.array(np.random.default_rng(seed).standard_normal((3, 256)).astype(np.float32))
    parts = mx.quantize(weight, group_size=group, bits=bits)
    found = affine.dequantized(*map(np.array, parts), bits)
    assert np.array_equal(found, np.array(mx.dequantize(*parts, group_size=group, bits=bits)))


def test_more_bits_lose_less():
    weight = np.random.default_rng(0).standard_normal((256, 256)).astype(np.float32)

    def decibels(bits):
        parts = mx.quantize(mx.array(weight), group_size=64, bits=bits)
        return affine.sqnr(weight, affine.dequantized(*map(np.array, parts), bits))

    assert decibels(4) == pytest.approx(20.8, abs=0.3)  # what is known of Gaussian weights in groups of 64
    assert decibels(8) == pytest.approx(45.4, abs=0.3)
    assert affine.sqnr(weight, weight) == float("inf")


def test_both_backends_write_the_same_file_and_open_it(saved, tmp_path, batch):
    for name in ("mlx", "torch"):
        done = command("quantize", saved, tmp_path / name, "--bits", 3, "--group-size", 32, "--backend", name)
        assert done.exit_code == 0, done.output
        size = (tmp_path / name / "model.safetensors").stat().st_size
        assert "blocks.1.mlp.fc2" in done.stdout and " dB" in done.stdout and f"{size:,} bytes" in done.stdout
    assert (tmp_path / "mlx" / "model.safetensors").read_bytes() == (tmp_path / "torch/model.safetensors").read_bytes()
    config = json.loads((tmp_path / "mlx" / "config.json").read_text())
    assert config["quantization"] == {"bits": 3, "group_size": 32}
    a, b = (load_model(tmp_path / "mlx", name) for name in ("mlx", "torch"))
    assert a.classes == ("a", "b", "c", "d", "e")
    assert a.base.quantization == THREE and a.base.packed and a.base.sha256 == b.base.sha256
    mine, theirs = (one.model.logits(batch[0]) for one in (a, b))
    assert relative(mine, theirs) <= ROUNDING
    plain = load_model(saved, "torch").model.logits(batch[0])
    assert not np.array_equal(theirs, plain)


def test_mlx_own_quantised_layer_takes_the_tensors(saved, tmp_path):
    command("quantize", saved, tmp_path / "q", "--bits", 3, "--group-size", 32)
    tensors = load_file(tmp_path / "q" / "model.safetensors")
    prefix = "blocks.0.attn.qkv."
    layer = nn.QuantizedLinear(64, 192, bias=True, group_size=32, bits=3)
    mine = [(name.removeprefix(prefix), mx.array(t)) for name, t in tensors.items() if name.startswith(prefix)]
    layer.load_weights(mine, strict=True)
    x = np.random.default_rng(0).standard_normal((2, 64)).astype(np.float32)
    weight = affine.dequantized(tensors[f"{prefix}weight"], tensors[f"{prefix}scales"], tensors[f"{prefix}biases"], 3)
    expected = x @ weight.T + tensors[f"{prefix}bias"]
    assert relative(np.array(layer(mx.array(x))), expected) <= ROUNDING


@pytest.mark.parametrize("backend_name", ["mlx", "torch"])
def test_predict_opens_a_models_folder(saved, tmp_path, backend_name):
    command("quantize", saved, tmp_path / "q", "--bits", 8)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(tmp_path / "x.png")
    done = command("predict", tmp_path / "q", tmp_path / "x.png", "--top", 5, "--backend", backend_name, "--json")
    (found,) = json.loads(done.stdout)
    assert sorted(guess["class"] for guess in found["predictions"]) == ["a", "b", "c", "d", "e"]


def test_a_quantised_folder_is_a_base_to_train_beside(build, saved, tmp_path, batch):
    command("quantize", saved, tmp_path / "q", "--bits", 3, "--group-size", 32)
    method = {"name": "lora"}
    found = build(method, None, {"weights": str(tmp_path / "q")})
    made = build(method, THREE.model_dump(), {"weights": str(saved)})
    assert np.array_equal(found.model.logits(batch[0]), made.model.logits(batch[0]))
    assert found.model.parameters == made.model.parameters
    assert found.model.base.sha256 != made.model.base.sha256
    again = Model(name="vit_tiny_patch16_224", weights=str(tmp_path / "q"))
    assert load_base(again, 5, 0, THREE).quantization == THREE
    with pytest.raises(UserError, match="quantised already, to 3 bits in groups of 32"):
        load_base(again, 5, 0, Quantization(bits=4))
    assert load_base(again, 9, 0).tensors["head.weight"].shape == (9, 64)


def test_a_quantised_model_is_not_quantised_again(saved, tmp_path):
    command("quantize", saved, tmp_path / "q")
    again = command("quantize", tmp_path / "q", tmp_path / "r")
    assert again.exit_code == 2 and "quantised already, to 4 bits in groups of 64" in again.stderr
    assert not (tmp_path / "r").exists()
    for option, value in (("--bits", 7), ("--group-size", 16)):
        wrong = command("quantize", saved, tmp_path / "r", option, value)
        assert wrong.exit_code == 2 and "should be one of" in wrong.stderr and f"({option} " in wrong.stderr


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mode": "mxfp4", "bits": 4, "group_size": 32}, "only MLX's affine mode"),
        ({"bits": 7, "group_size": 32}, "only MLX's affine mode"),
        ("4bit", "only MLX's affine mode"),
        ({"bits": 4, "group_size": 32}, "not the codes that its quantization entry describes: "),
    ],
    ids=str,
)
def test_a_folder_that_contradicts_its_tensors_is_refused(saved, tmp_path, change, message):
    command("quantize", saved, tmp_path / "q", "--bits", 3, "--group-size", 32)
    path = tmp_path / "q" / "config.json"
    by_hand(path, json.dumps(json.loads(path.read_text()) | {"quantization": change}))
    with pytest.raises(UserError, match=message):
        load_model(tmp_path / "q", "torch")


def test_words_without_a_quantization_entry_are_refused(saved, tmp_path):
    command("quantize", saved, tmp_path / "q", "--bits", 3, "--group-size", 32)
    path = tmp_path / "q" / "config.json"
    config = json.loads(path.read_text())
    del config["quantization"]
    by_hand(path, json.dumps(config))
    with pytest.raises(UserError, match=r"not of a float type.*U32"):
        load_model(tmp_path / "q", "torch")


def test_stored_bytes_of_a_four_bit_deit_small_with_ten_classes(tmp_path):
    """Codes, scales and biases cost 5 bits a weight; with what stays float, at most 0.18 of the plain file."""
    model, four = Model(name="deit_small_patch16_224", weights="none"), Quantization(bits=4)
    base = load_base(model, 10, 0)
    random = np.random.default_rng(0)
    packed = dict(base.tensors)
    for name, shape in four.stored(base.architecture, {n: t.shape for n, t in base.tensors.items()}).items():
        if name not in packed or shape != packed[name].shape:
            words = name.endswith(".weight")
            packed[name] = random.integers(0, 2**32, shape, np.uint32) if words else np.zeros(shape, np.float32)
    write_model(tmp_path / "plain", base=base, tensors=base.tensors)
    write_model(tmp_path / "packed", base=replace(base, tensors=packed), tensors=packed, quantization=four)
    plain, small = ((tmp_path / name / "model.safetensors").stat().st_size for name in ("plain", "packed"))
    assert small <= 0.18 * plain
    header = small - sum(tensor.nbytes for tensor in packed.values())
    assert 0 < header < 64 * 1024  # names and places of the tensors

"""LoftQ: codes and low-rank factors chosen together, and an adapter that brings its codes with it."""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import peft.utils.loftq_utils as theirs
import pytest
import torch
from comparing import relative
from peft_reference import opened, timm_of

from mlx_peft.backend import blas  # noqa: F401  before MLX

# isort: split

import mlx.core as mx

from convert.adapters.peft import read_adapter
from convert.base import load_base
from mlx_peft.adaptation.factors import row_norms
from mlx_peft.artifacts.load import load_run
from mlx_peft.codes.affine import dequantized, quantized
from mlx_peft.codes.loftq import magnitudes, start, together
from mlx_peft.config.methods import LoRA
from mlx_peft.config.methods.inits import LoftQ
from mlx_peft.config.quantization import Quantization
from mlx_peft.config.schema import Experiment
from mlx_peft.core.errors import UserError
from mlx_peft.training.run import RunFolder
from mlx_peft.training.train import train
from mlx_peft.vit.sites import Site
from torch_ref import library

TURNS = 3
ROUNDING = 2e-6
"""Relative, float32: W - Q - s B A, whose last product is added up in another order."""

TURNED = 1e-5
"""Relative, float32: as much through some turns, whose scales follow from the factors. One code on the other side of
its edge would be a hundred times as much."""

LAYER = Site("blocks.0.attn.qkv", outputs=96, inputs=64)
PARTS = Site("blocks.0.attn.qkv", outputs=96, inputs=64, parts=("q", "v"))


def weight(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((96, 64)).astype(np.float32)


def codes_of_mlx(weight: np.ndarray, bits: int) -> np.ndarray:
    """What MLX's own codes of a weight stand for."""
    return np.array(mx.dequantize(*mx.quantize(mx.array(weight), 32, bits), group_size=32, bits=bits))


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("site", [LAYER, PARTS], ids=["layer", "parts"])
def test_codes_and_factors_together_are_nearer_to_the_weight_than_codes(site: Site, bits: int) -> None:
    W, quantization = weight(), Quantization(bits=bits, group_size=32)
    plain = np.linalg.norm(W - codes_of_mlx(W, bits))
    errors = []
    for steps in (1, TURNS):
        method = LoRA(rank=8, alpha=3, init="loftq", loftq=LoftQ(steps=steps))
        codes, A, B, whole = together(method, site, W, quantization)
        made = dequantized(*codes, bits)
        for rows, own_A, own_B in zip(site.rows, np.split(A, site.count), np.split(B, site.count), strict=True):
            made[rows] += method.scaling * own_B @ own_A
        assert relative(whole, made) <= ROUNDING
        errors.append(np.linalg.norm(W - made))
    assert errors[1] < errors[0] < plain
    untouched = slice(32, 64)  # k has no factors
    if site.parts:
        np.testing.assert_array_equal(dequantized(*codes, bits)[untouched], codes_of_mlx(W, bits)[untouched])


def test_it_is_the_paper_s_algorithm() -> None:
    """Algorithm 1, with NumPy's singular values, MLX's own codes, and s = 1."""
    W, rank = weight(), 6
    A, B = np.zeros((rank, 64)), np.zeros((96, rank))
    for _ in range(TURNS):
        Q = codes_of_mlx((W - B @ A).astype(np.float32), 4)
        U, S, V = np.linalg.svd((W - Q).astype(np.float64), full_matrices=False)
        A, B = np.sqrt(S[:rank, None]) * V[:rank], U[:, :rank] * np.sqrt(S[:rank])
    method = LoRA(rank=rank, alpha=rank, init="loftq", loftq=LoftQ(steps=TURNS))
    codes, found_A, found_B, _ = together(method, LAYER, W, Quantization(bits=4, group_size=32))
    assert relative(dequantized(*codes, 4), Q) <= TURNED
    assert relative(found_B @ found_A, B @ A) <= TURNED
    signs = np.sign((found_A * A).sum(axis=1))
    assert relative(found_A * signs[:, None], A) <= 1e-4 and relative(found_B * signs, B) <= 1e-4


@pytest.mark.parametrize("turns", [1, TURNS])
def test_it_is_pefts_with_our_codes(turns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """``loftq_init`` with affine codes in the place of bitsandbytes', on a CPU in the place of its GPU."""

    class Codes:
        def __init__(self, weight: torch.Tensor, **options: object) -> None:
            self.data, self.quant_state = torch.from_numpy(codes_of_mlx(weight.numpy(), 4)), None

        def to(self, device: str) -> Codes:
            return self

    there = torch.Tensor.to
    here = lambda tensor, *a, device="cpu", **k: tensor if a or device == "cpu" else there(tensor, **k)  # noqa: E731
    fake = SimpleNamespace(
        nn=SimpleNamespace(Params4bit=Codes), functional=SimpleNamespace(dequantize_4bit=lambda data, state: data)
    )
    monkeypatch.setitem(sys.modules, "bitsandbytes", fake)
    for name in ("is_bnb_available", "is_bnb_4bit_available"):
        monkeypatch.setattr(theirs, name, lambda: True)
    monkeypatch.setattr(theirs, "clear_device_cache", lambda: None)
    W = weight()
    with monkeypatch.context() as on_a_cpu:
        on_a_cpu.setattr(torch.Tensor, "to", here)
        Q, A, B = theirs.loftq_init(torch.from_numpy(W), num_bits=4, reduced_rank=6, num_iter=turns)
    method = LoRA(rank=6, alpha=6, init="loftq", loftq=LoftQ(steps=turns))
    codes, found_A, found_B, _ = together(method, LAYER, W, Quantization(bits=4, group_size=32))
    assert relative(dequantized(*codes, 4), Q.numpy()) <= TURNED
    assert relative(found_B @ found_A, (B @ A).numpy()) <= TURNED


def test_numpy_makes_the_codes_that_backends_make() -> None:
    W = weight()
    for bits in (2, 3, 4, 5, 6, 8):
        for found, expected in zip(quantized(W, bits, 32), mx.quantize(mx.array(W), 32, bits), strict=True):
            np.testing.assert_array_equal(found, np.array(expected))


def test_doras_magnitudes_are_those_of_codes_and_factors_together() -> None:
    W, quantization = weight(), Quantization(bits=3, group_size=32)
    method = LoRA(rank=4, init="loftq", dora=True, targets=("q", "v"))
    whole = together(method, PARTS, W, quantization).weight
    found = magnitudes(PARTS, row_norms(whole))
    norms = np.linalg.norm(whole, axis=1)
    np.testing.assert_allclose(found[f"{PARTS.path}.lora_magnitude_vector"], np.r_[norms[:32], norms[64:]], rtol=1e-6)
    np.testing.assert_allclose(found[f"{PARTS.path}.lora_magnitude_rest"], norms[32:64], rtol=1e-6)


# A run.


@pytest.fixture(scope="module", params=["torch", pytest.param("mlx", marks=pytest.mark.slow)])
def run(request, tmp_path_factory):
    args = {"patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 2}
    experiment = Experiment.model_validate(
        {
            "backend": request.param,
            "model": {"name": "vit_tiny_patch16_224", "weights": "none", "image_size": 32, "args": args},
            "method": {"name": "lora", "targets": ["q", "fc2"], "init": "loftq", "loftq": {"steps": 2}},
            "quantize": {"bits": 2, "group_size": 32},
            "data": {"name": "digits", "split": {"test": 0.9, "val": 0}, "batch_size": 64},
            "train": {"epochs": 1},
        }
    )
    out = tmp_path_factory.mktemp("runs") / request.param
    train(experiment, out)
    return out


@pytest.fixture
def batch():
    return np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)


def test_an_adapter_reopens_on_the_plain_backbone_with_its_own_codes(run, batch, tmp_path):
    (run / "adapter").rename(tmp_path / "alone")
    alone = load_run(tmp_path / "alone", RunFolder(run).read_config().backend)
    (tmp_path / "alone").rename(run / "adapter")
    whole = load_run(run)
    np.testing.assert_array_equal(alone.model.logits(batch), whole.model.logits(batch))
    other = load_run(run, "mlx" if whole.recipe.backend == "torch" else "torch")
    assert relative(other.model.logits(batch), whole.model.logits(batch)) <= 1e-5
    codes = {name: tensor for name, tensor in whole.model.adapter().items() if ".base_layer." in name}
    assert len(codes) == 2 * 2 * 3 and any(tensor.dtype == np.uint32 for tensor in codes.values())
    for name, tensor in read_adapter(run / "adapter").tensors.items():
        np.testing.assert_array_equal(tensor, whole.model.adapter()[name])


def test_codes_stay_as_they_were_chosen_while_factors_are_trained(run):
    experiment = RunFolder(run).read_config()
    held = read_adapter(run / "adapter").tensors
    base = load_run(run).base
    plain = load_base(experiment.model, 10, experiment.seed, experiment.quantize)
    begun = start(experiment.method, base.architecture, plain.tensors, experiment.quantize)
    for name, tensor in begun.items():
        if ".base_layer." in name:
            np.testing.assert_array_equal(held[name], tensor)
        else:
            assert not np.array_equal(held[name], tensor), name


def test_a_finished_run_that_is_made_longer_keeps_its_codes(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    experiment = RunFolder(run).read_config()
    more = experiment.model_copy(update={"train": experiment.train.model_copy(update={"epochs": 2})})
    before = read_adapter(run / "adapter").tensors
    train(more, tmp_path / "run", resume=True)
    after = read_adapter(tmp_path / "run" / "adapter").tensors
    assert all(np.array_equal(after[name], before[name]) for name in before if ".base_layer." in name)


def test_peft_opens_the_file_and_passes_its_codes_over(run):
    loaded = load_run(run, "torch")
    plain = load_base(loaded.recipe.model, 10, 0)
    model = opened(plain, run / "adapter")
    tensors = read_adapter(run / "adapter").tensors
    A = model.get_submodule("base_model.model.blocks.0.mlp.fc2").lora_A["default"].weight
    np.testing.assert_array_equal(A.detach().numpy(), tensors["blocks.0.mlp.fc2.lora_A"])
    W = model.get_submodule("base_model.model.blocks.0.mlp.fc2").base_layer.weight
    np.testing.assert_array_equal(W.detach().numpy(), timm_of(plain).blocks[0].mlp.fc2.weight.detach().numpy())


def test_it_merges_when_dequantised(run, batch):
    loaded = load_run(run, "torch")
    merged = loaded.model.merged(dequantize=True)
    plain = replace(loaded.base, tensors=merged, quantization=None)
    assert relative(loaded.recipe.build_base(plain, 10).logits(batch), loaded.model.logits(batch)) <= 1e-5


def test_neither_a_batch_nor_a_sum_mixes_adapters_of_other_codes(run):
    method = read_adapter(run / "adapter").method
    with pytest.raises(UserError, match="cannot mix its adapters: each has codes of its own"):
        method.must_mix()
    with pytest.raises(UserError, match="cannot be combined: each has codes of its own"):
        method.must_combine()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quantize": None}, "init: loftq chooses the codes of a quantised base, and here is none: set quantize"),
        ({"method": {"name": "lora", "init": "loftq", "rank": 65}}, "rank 65 is above the width"),
    ],
)
def test_what_cannot_start_so_is_refused(run, changes, message, tmp_path):
    experiment = RunFolder(run).read_config().model_dump() | changes
    with pytest.raises(UserError, match=message):
        train(Experiment.model_validate(experiment), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_model_in_a_notebook_has_no_plain_weights_to_start_from():
    model = library.create_model(
        "vit_tiny_patch16_224", weights="none", num_classes=3, image_size=32,
        args={"depth": 1, "embed_dim": 64, "num_heads": 2}, quantize=Quantization(bits=4, group_size=32),
    )  # fmt: skip
    with pytest.raises(UserError, match="starts from the weights before they were quantised"):
        library.add_adapter(model, LoRA(init="loftq"))

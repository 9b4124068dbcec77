"""The low-rank family against Hugging Face PEFT: logits, gradients, PiSSA's start, dropout, merging."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import numpy as np
import peft
import pytest
import torch
from comparing import relative
from foreign_models import prepared
from peft_reference import gradients, logits, opened, timm_of

import mlx_peft.backend.entry
import mlx_peft.backend.methods
import torch_ref.entry
import torch_ref.methods
from convert.adapters.lora import unpack
from convert.adapters.peft import Adapter, write_adapter
from convert.base import Base, load_base
from mlx_peft.adaptation.factors import row_norms
from mlx_peft.config.methods import LoRA
from mlx_peft.config.schema import Experiment

LOGITS, GRADIENTS = 1e-5, 1e-4
"""Relative, float32: PEFT adds the update to the base's output where ours forms the weight first."""

BACKENDS = {"mlx": mlx_peft.backend.entry, "torch": torch_ref.entry}
SIZES = {"patch_size": 8, "depth": 2, "embed_dim": 24, "num_heads": 3}
NAME, CLASSES, SIZE = "vit_tiny_patch16_224", 3, 32
ALL = ("qkv", "proj", "fc1", "fc2")

METHODS = {
    "lora": LoRA(rank=4, alpha=6, targets=ALL),
    "rslora": LoRA(rank=4, rslora=True, targets=("qkv", "fc2")),
    "patterns": LoRA(
        rank=2, targets=ALL, blocks=(1,), rank_pattern={"proj": 5}, alpha_pattern={r"blocks\.1\.mlp\.fc1": 3}
    ),
    "parts": LoRA(rank=2, targets=("q", "v")),
    "dora": LoRA(rank=3, dora=True, targets=ALL),
    "dora of parts": LoRA(rank=3, dora=True, targets=("k", "v", "fc1")),
    "pissa": LoRA(rank=3, init="pissa", targets=ALL),
    "olora": LoRA(rank=3, alpha=5, init="olora", targets=("q", "v", "fc1")),
    "orthogonal": LoRA(rank=4, init="orthogonal", targets=("k", "proj")),
    "pissa of parts, dora": LoRA(rank=2, init="pissa", rslora=True, dora=True, targets=("q", "proj")),
}


@pytest.fixture(scope="module")
def base() -> Base:
    return load_base(experiment(LoRA()).model, CLASSES, seed=1)


@pytest.fixture(scope="module")
def batch() -> tuple[np.ndarray, np.ndarray]:
    images = np.random.default_rng(0).integers(0, 256, (4, SIZE, SIZE, 3), dtype=np.uint8)
    return images, np.array([0, 1, 2, 1], np.int32)


@pytest.fixture(params=BACKENDS)
def build(request, base):
    return lambda method: BACKENDS[request.param].build_trainer(experiment(method), CLASSES, base)


def experiment(method: LoRA) -> Experiment:
    model = {"name": NAME, "weights": "none", "image_size": SIZE, "args": SIZES}
    data = {"name": "digits", "batch_size": 4}
    return Experiment.model_validate({"model": model, "method": method.model_dump(), "data": data})


def away(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """All that is trained moved from its start, where much is zero; what is kept must be the base's."""
    random = np.random.default_rng(1)
    kept = LoRA.kept
    noise = {name: random.standard_normal(tensor.shape).astype(np.float32) for name, tensor in sorted(tensors.items())}
    return {name: t if name.endswith(kept) else t + 0.1 * noise[name] for name, t in tensors.items()}


@pytest.mark.one_in(2)
@pytest.mark.parametrize("case", METHODS)
def test_the_same_adapter_has_the_same_logits_gradients_and_merged_weights(build, base, batch, case, tmp_path: Path):
    method = METHODS[case]
    trainer = build(method)
    trainer.model.load_adapter(away(trainer.model.adapter()))
    adapter = Adapter(method, trainer.model.adapter(), (), None, base.architecture, base.preprocessing, None, NAME)
    write_adapter(tmp_path / "adapter", adapter)
    model = opened(base, tmp_path / "adapter", trainable=True)

    inputs = prepared(batch[0], base)
    expected = logits(model, inputs)
    assert relative(trainer.model.logits(batch[0]), expected) < LOGITS
    assert relative(logits(timm_of(base), inputs), expected) > 0.01  # so the adapter does something
    # The gradient of what is placed in a larger matrix stands in the same places.
    unpacked = unpack(method, gradients(model, inputs, batch[1]))
    for name, gradient in trainer.loss_and_gradients(*batch)[1].items():
        assert relative(gradient, unpacked[name]) < GRADIENTS, name

    whole = trainer.model.merged()
    for name, tensor in model.merge_and_unload().state_dict().items():
        assert relative(whole[name], tensor.numpy()) < LOGITS, name


@pytest.mark.parametrize(("init", "rslora"), [("pissa", False), ("pissa", True), ("olora", True)])
def test_a_start_that_counts_starts_and_learns_as_pefts_does(build, base, batch, init, rslora):
    method = LoRA(rank=3, alpha=5, init=init, rslora=rslora, targets=ALL)
    trainer = build(method)
    config = peft.LoraConfig(
        r=3, lora_alpha=5, init_lora_weights=init, use_rslora=rslora, modules_to_save=["head"],
        target_modules=r"blocks.*\.(qkv|proj|fc1|fc2)",
    )  # fmt: skip
    model = peft.get_peft_model(timm_of(base), config)
    layers = {
        site.path: model.get_submodule(f"base_model.model.{site.path}") for site in method.sites(base.architecture)
    }
    start = trainer.model.adapter()
    for path, layer in layers.items():
        A, B = (factors["default"].weight.detach().numpy() for factors in (layer.lora_A, layer.lora_B))
        ours = start[f"{path}.lora_A"], start[f"{path}.lora_B"]
        # The sign of a triplet is free; singular vectors are known to float32's rounding over the gap of their values.
        signs = np.sign((A * ours[0]).sum(axis=1))
        assert relative(ours[0] * signs[:, None], A) < 1e-4 and relative(ours[1] * signs, B) < 1e-4
        residual = base.tensors[f"{path}.weight"] - method.scaling * ours[1] @ ours[0]
        assert relative(residual, layer.base_layer.weight.numpy()) < LOGITS

    moved = away(start)
    trainer.model.load_adapter(moved)
    with torch.no_grad():
        for path, layer in layers.items():
            layer.lora_A["default"].weight.copy_(torch.from_numpy(moved[f"{path}.lora_A"]))
            layer.lora_B["default"].weight.copy_(torch.from_numpy(moved[f"{path}.lora_B"]))
        for kind in ("weight", "bias"):
            saved = model.base_model.model.head.modules_to_save["default"]
            getattr(saved, kind).copy_(torch.from_numpy(moved[f"head.{kind}"]))
    inputs = prepared(batch[0], base)
    assert relative(trainer.model.logits(batch[0]), logits(model, inputs)) < LOGITS
    expected = gradients(model, inputs, batch[1])
    for name, gradient in trainer.loss_and_gradients(*batch)[1].items():
        key = name if name.startswith("head") else f"{name}.weight"
        assert relative(gradient, expected[key]) < GRADIENTS, name


class Masked(torch.nn.Module):
    """Dropout whose draw is known."""

    def __init__(self, mask: torch.Tensor):
        super().__init__()
        self.mask = mask

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.mask


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("init", [True, "pissa", "olora"])
@pytest.mark.parametrize("dora", [False, True])
def test_dropout_stands_where_pefts_does(backend, init, dora):
    """On the input of A, and with DoRA of the magnitude's part, but not of the frozen weight's own output."""
    random = np.random.default_rng(0)
    W, b, x = (random.standard_normal(shape).astype(np.float32) for shape in ((9, 12), (9,), (5, 12)))
    mask = (random.random((5, 12)) < 0.5).astype(np.float32) * 2
    host = torch.nn.Sequential()
    host.add_module("fc", torch.nn.Linear(12, 9))
    host.fc.weight.data, host.fc.bias.data = torch.from_numpy(W.copy()), torch.from_numpy(b.copy())
    config = peft.LoraConfig(
        r=2, lora_alpha=3, lora_dropout=0.5, target_modules=["fc"], init_lora_weights=init, use_dora=dora
    )
    layer = peft.get_peft_model(host, config).train().base_model.model.fc
    layer.lora_dropout["default"] = Masked(torch.from_numpy(mask))
    A0, B0 = (factors["default"].weight.detach().numpy().copy() for factors in (layer.lora_A, layer.lora_B))
    A, B = (t + 0.3 * random.standard_normal(t.shape).astype(np.float32) for t in (A0, B0))
    layer.lora_A["default"].weight.data, layer.lora_B["default"].weight.data = map(torch.from_numpy, (A, B))
    expected = layer(torch.from_numpy(x)).detach().numpy()

    side = {"mlx": mlx_peft.backend.methods, "torch": torch_ref.methods}[backend].lora
    to, arrays = (torch.from_numpy, torch) if backend == "torch" else (mx.array, None)
    base_layer = side.Linear(12, 9)
    base_layer.weight, base_layer.bias = (
        (torch.nn.Parameter(to(t)) for t in (W, b)) if arrays else (to(t) for t in (W, b))
    )
    arguments = (
        base_layer,
        to(A0.copy()),
        to(B0.copy()),
        1.5,
        0.5,
        (),
        None if init is True else (f"{init}_A", f"{init}_B"),
    )
    ours = side.DoRALinear(*arguments, norms=to(row_norms(W))) if dora else side.LoRALinear(*arguments)
    if arrays:
        ours.lora_A.data, ours.lora_B.data = to(A), to(B)
        ours.dropout.forward = lambda x: x * to(mask)
        found = ours(to(x)).detach().numpy()
    else:
        ours.lora_A, ours.lora_B = to(A), to(B)
        known = type("Known", (type(ours.dropout),), {"__call__": lambda self, x: x * to(mask)})
        ours.dropout = known(0.5)
        found = np.array(ours(to(x)))
    assert relative(found, expected) < LOGITS
    assert relative(found, x @ W.T + b) > 0.1

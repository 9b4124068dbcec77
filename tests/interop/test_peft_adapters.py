"""Adapters between mlx-peft and Hugging Face PEFT, on timm's models."""

from __future__ import annotations

import dataclasses
import json
import warnings
from pathlib import Path

import numpy as np
import peft
import pytest
import timm
import torch

from convert.base import Base, load_base
from convert.peft import Adapter, read_adapter, write_adapter
from mlx_peft.config.errors import UserError
from mlx_peft.config.methods import Full, Linear, LoRA, MethodConfig
from mlx_peft.config.schema import Model

LOGITS = 1e-5
"""Relative; float32, with W + s B A formed on one side only."""

SIZES = {"depth": 2, "embed_dim": 24, "num_heads": 3}
CLASSES = ("cat", "dog", "emu")
FIRST = {"fc1": ("fc1", "fc1_g", "fc1_x")}


def base_of(name: str) -> tuple[Model, Base]:
    model = Model(name=name, weights="none", image_size=64, args=SIZES)  # type: ignore[arg-type]
    return model, load_base(model, len(CLASSES), seed=1)


def timm_of(name: str, tensors: dict[str, np.ndarray]) -> torch.nn.Module:
    model = timm.create_model(name, num_classes=len(CLASSES), img_size=64, **SIZES)
    model.load_state_dict({key: torch.from_numpy(value) for key, value in tensors.items()})
    return model.eval()


def trained(model: Model, base: Base, method: LoRA) -> Adapter:
    """What a learner would hand over, with random numbers in it."""
    random = np.random.default_rng(0)
    tensors = {}
    for name, weight in base.tensors.items():
        layer, _, kind = name.rpartition(".")
        last = layer.rpartition(".")[2]
        for target, parts in method.layers.items():
            if layer.startswith("blocks") and kind == "weight" and last in FIRST.get(target, (target,)):
                count = max(len(parts), 1)
                rows = len(weight) // 3 * count if parts else len(weight)
                tensors[f"{layer}.lora_A"] = random.normal(0, 0.2, (count * method.rank, weight.shape[1]))
                tensors[f"{layer}.lora_B"] = random.normal(0, 0.2, (rows, method.rank))
        if name.startswith("head"):
            tensors[name] = random.normal(0, 0.2, weight.shape)
    return Adapter(
        method=method,
        tensors={name: tensor.astype(np.float32) for name, tensor in tensors.items()},
        classes=CLASSES,
        model=model,
        architecture=base.architecture,
        preprocessing=base.preprocessing,
        base_sha256=base.sha256,
        source=base.source,
    )


def merged(base: Base, adapter: Adapter) -> dict[str, np.ndarray]:
    """W + s B A by the paper, each part of qkv on its own."""
    method, tensors = adapter.method, dict(base.tensors)
    assert isinstance(method, LoRA)
    for name, tensor in adapter.tensors.items():
        layer, _, kind = name.rpartition(".")
        if name.startswith("head"):
            tensors[name] = tensor
        if kind != "lora_A":
            continue
        A, B = tensor.astype(np.float64), adapter.tensors[f"{layer}.lora_B"].astype(np.float64)
        parts = method.layers.get(layer.rpartition(".")[2], ())
        delta = np.zeros(tensors[f"{layer}.weight"].shape)
        if parts:
            third = len(delta) // 3
            for part, a, b in zip(parts, np.split(A, len(parts)), np.split(B, len(parts)), strict=True):
                delta["qkv".index(part) * third :][:third] = b @ a
        else:
            delta = B @ A
        tensors[f"{layer}.weight"] = (tensors[f"{layer}.weight"] + method.scaling * delta).astype(np.float32)
    return tensors


def logits(model: torch.nn.Module) -> np.ndarray:
    torch.manual_seed(0)
    with torch.no_grad():
        return model(torch.randn(2, 3, 64, 64)).numpy()


def distance(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


CASES = {
    "all four": ("deit_tiny_patch16_224", LoRA(rank=4, alpha=10, targets=("qkv", "proj", "fc1", "fc2"))),
    "q and v": ("deit_tiny_patch16_224", LoRA(rank=3, alpha=5, targets=("q", "v"))),
    "k, rslora": ("vit_small_patch14_dinov2", LoRA(rank=4, rslora=True, targets=("k",))),
    "parts and wholes": ("deit_tiny_patch16_224", LoRA(rank=3, rslora=True, targets=("v", "q", "proj"))),
    "distilled": ("deit_tiny_distilled_patch16_224", LoRA(rank=2, targets=("qkv", "fc2"))),
    "attention pooling": ("vit_base_patch16_siglip_224", LoRA(rank=2, targets=("proj", "fc1", "fc2"))),
    "swiglu": ("aimv2_large_patch14_224", LoRA(rank=2, targets=("fc1", "proj"))),
}


@pytest.mark.parametrize("case", CASES)
def test_peft_opens_the_adapter_with_the_same_logits(case: str, tmp_path: Path) -> None:
    name, method = CASES[case]
    model, base = base_of(name)
    adapter = trained(model, base, method)
    assert write_adapter(tmp_path / "adapter", adapter) == []

    with warnings.catch_warnings():
        warnings.simplefilter("error")  # PEFT warns of keys that it does not know or does not find
        opened = peft.PeftModel.from_pretrained(timm_of(name, base.tensors), str(tmp_path / "adapter"))
    expected = logits(timm_of(name, merged(base, adapter)))
    assert distance(logits(opened.eval()), expected) < LOGITS
    assert distance(logits(timm_of(name, base.tensors)), expected) > 0.1  # so the adapter does something


@pytest.mark.parametrize("case", CASES)
def test_an_adapter_comes_back_bit_for_bit(case: str, tmp_path: Path) -> None:
    name, method = CASES[case]
    adapter = trained(*base_of(name), method)
    write_adapter(tmp_path, adapter)
    again = read_adapter(tmp_path)
    assert dataclasses.replace(again, tensors={}) == dataclasses.replace(adapter, tensors={})
    assert again.tensors.keys() == adapter.tensors.keys()
    for key, tensor in adapter.tensors.items():
        np.testing.assert_array_equal(again.tensors[key], tensor)


@pytest.mark.parametrize("case", CASES)
def test_an_adapter_that_peft_saved_again_is_the_same_model(case: str, tmp_path: Path) -> None:
    name, method = CASES[case]
    model, base = base_of(name)
    adapter = trained(model, base, method)
    write_adapter(tmp_path / "ours", adapter)
    opened = peft.PeftModel.from_pretrained(timm_of(name, base.tensors), str(tmp_path / "ours"))
    opened.save_pretrained(tmp_path / "theirs", save_embedding_layers=False)  # else it asks the hub
    again = read_adapter(tmp_path / "theirs")
    assert (again.model, again.classes, again.base_sha256, again.source) == (None, (), None, name)
    assert again.architecture is not None and again.architecture.patch_size == base.architecture.patch_size
    assert distance(logits(timm_of(name, merged(base, again))), logits(opened.eval())) < LOGITS


def test_an_adapter_that_peft_trained_is_read(tmp_path: Path) -> None:
    name = "deit_tiny_patch16_224"
    _, base = base_of(name)
    config = peft.LoraConfig(
        r=4,
        lora_alpha=6,
        lora_dropout=0.25,
        target_modules=r".*blocks\.\d+\..*\.(qkv|proj|fc2)",
        rank_pattern={"fc2": 2},
        alpha_pattern={r"1\.mlp\.fc2": 12},
        modules_to_save=["head"],
        init_lora_weights=False,
    )
    opened = peft.get_peft_model(timm_of(name, base.tensors), config).eval()
    opened.save_pretrained(tmp_path)
    adapter = read_adapter(tmp_path)
    assert adapter.method == LoRA(rank=4, alpha=6, dropout=0.25, targets=("qkv", "proj", "fc2"))
    assert adapter.tensors["blocks.0.mlp.fc2.lora_A"].shape == (4, 96)
    assert distance(logits(timm_of(name, merged(base, adapter))), logits(opened)) < LOGITS


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target_modules": ["proj"]}, r"no LoRA of a linear layer in a block: patch_embed\.proj\.lora_A\.weight"),
        ({"use_dora": True}, "not supported: use_dora: True"),
        ({"init_lora_weights": "pissa"}, "not supported: init_lora_weights: pissa"),
        ({"modules_to_save": ["head", "norm"]}, r"no LoRA of a linear layer in a block: norm\.bias, norm\.weight"),
    ],
)
def test_more_than_lora_on_the_blocks_is_refused(changes: dict[str, object], message: str, tmp_path: Path) -> None:
    _, base = base_of("deit_tiny_patch16_224")
    config = peft.LoraConfig(**({"r": 2, "target_modules": r"blocks.*\.qkv"} | changes))
    peft.get_peft_model(timm_of("deit_tiny_patch16_224", base.tensors), config).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=message):
        read_adapter(tmp_path)


def test_another_method_of_pefts_is_refused_by_name(tmp_path: Path) -> None:
    _, base = base_of("deit_tiny_patch16_224")
    config = peft.LoHaConfig(target_modules=r"blocks.*\.qkv")
    peft.get_peft_model(timm_of("deit_tiny_patch16_224", base.tensors), config).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"peft_type 'LOHA' is not supported \(known: LORA\)"):
        read_adapter(tmp_path)


@pytest.mark.parametrize("method", [Linear(), Full()])
def test_a_method_that_peft_does_not_have_says_so_and_comes_back(method: MethodConfig, tmp_path: Path) -> None:
    model, base = base_of("deit_tiny_distilled_patch16_224")
    tensors = {name: tensor for name, tensor in base.tensors.items() if method == Full() or name.startswith("head")}
    adapter = dataclasses.replace(trained(model, base, LoRA()), method=method, tensors=tensors)
    notes = write_adapter(tmp_path / "adapter", adapter)
    assert len(notes) == 1 and "Hugging Face PEFT has no method" in notes[0]
    again = read_adapter(tmp_path / "adapter")
    assert again.method == method and again.tensors.keys() == tensors.keys()
    for key, tensor in tensors.items():
        np.testing.assert_array_equal(again.tensors[key], tensor)


def test_the_same_adapter_gives_the_same_bytes(tmp_path: Path) -> None:
    adapter = trained(*base_of("deit_tiny_patch16_224"), LoRA(rank=2, targets=("q", "proj")))
    shuffled = dataclasses.replace(adapter, tensors=dict(reversed(adapter.tensors.items())))
    write_adapter(tmp_path / "a", adapter)
    write_adapter(tmp_path / "b", shuffled)
    write_adapter(tmp_path / "b", shuffled)
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_the_base_is_named_so_that_it_can_be_found_again(tmp_path: Path) -> None:
    model, base = base_of("deit_tiny_patch16_224")
    adapter = trained(model, base, LoRA())
    hub = "timm/deit_tiny_patch16_224.fb_in1k"
    published = dataclasses.replace(adapter, model=model.model_copy(update={"weights": "timm"}), source=hub)
    for one, expected in ((adapter, "deit_tiny_patch16_224"), (published, hub)):
        write_adapter(tmp_path / "adapter", one)
        config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == expected

"""Adapters between mlx-peft and Hugging Face PEFT, on timm's models."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

import numpy as np
import peft
import peft_reference
import pytest
import torch
from comparing import relative
from interop.lora_of_peft import LOGITS, base_of, logits, merged, trained
from peft_reference import timm_of

from convert.adapters.peft import read_adapter, write_adapter
from mlx_peft.config.methods import LoRA

CASES = {
    "all four": ("deit_tiny_patch16_224", LoRA(rank=4, alpha=10, targets=("qkv", "proj", "fc1", "fc2"))),
    "q and v": ("deit_tiny_patch16_224", LoRA(rank=3, alpha=5, targets=("q", "v"))),
    "k, rslora": ("vit_small_patch14_dinov2", LoRA(rank=4, rslora=True, targets=("k",))),
    "parts and wholes": ("deit_tiny_patch16_224", LoRA(rank=3, rslora=True, targets=("v", "q", "proj"))),
    "distilled": ("deit_tiny_distilled_patch16_224", LoRA(rank=2, targets=("qkv", "fc2"))),
    "attention pooling": ("vit_base_patch16_siglip_224", LoRA(rank=2, targets=("proj", "fc1", "fc2"))),
    "swiglu": ("aimv2_large_patch14_224", LoRA(rank=2, targets=("fc1", "proj"))),
    "rotary": ("vit_small_patch16_dinov3", LoRA(rank=2, targets=("q", "v", "proj", "fc1", "fc2"))),
    "rotary, dora": ("vit_small_plus_patch16_dinov3", LoRA(rank=2, dora=True, targets=("qkv", "fc1"))),
    "relative": ("beit_base_patch16_224", LoRA(rank=2, dora=True, targets=("proj", "fc1", "fc2"))),
    "q, k and v apart": ("eva02_base_patch14_224", LoRA(rank=2, targets=("q", "v", "proj", "fc2"))),
    "q, k and v apart, all": ("eva02_base_patch14_224", LoRA(rank=2, targets=("qkv",), rank_pattern={"k_proj": 3})),
    "one block": ("deit_tiny_patch16_224", LoRA(rank=2, targets=("qkv", "fc2"), blocks=(-1,))),
    "patterns": (
        "deit_tiny_patch16_224",
        LoRA(
            rank=4,
            alpha=6,
            targets=("qkv", "proj", "fc2"),
            rank_pattern={r"0\.attn\.qkv": 2, "fc2": 3, r"1\.attn\..*": 5},
            alpha_pattern={r"blocks\.1\.mlp\.fc2": 2.5, "proj": 9},
        ),
    ),
    "patterns of parts, rslora": (
        "deit_tiny_patch16_224",
        LoRA(rank=2, rslora=True, targets=("k", "v", "fc1"), rank_pattern={r"1\.attn\.qkv": 3, "fc1": 6}),
    ),
    "dora": ("deit_tiny_patch16_224", LoRA(rank=3, dora=True, targets=("qkv", "proj", "fc1", "fc2"))),
    "dora, q and v": ("deit_tiny_patch16_224", LoRA(rank=3, dora=True, targets=("q", "v", "fc2"))),
    "dora, k": ("vit_small_patch14_dinov2", LoRA(rank=3, dora=True, rslora=True, targets=("k",))),
    "dora, all parts": ("deit_tiny_patch16_224", LoRA(rank=2, dora=True, targets=("q", "k", "v"))),
    "pissa": ("deit_tiny_patch16_224", LoRA(rank=3, init="pissa", targets=("qkv", "proj", "fc1", "fc2"))),
    "pissa, rslora, q and v": ("deit_tiny_patch16_224", LoRA(rank=3, init="pissa", rslora=True, targets=("q", "v"))),
    "olora of parts": ("deit_tiny_patch16_224", LoRA(rank=2, init="olora", targets=("q", "v", "fc2"))),
    "pissa with dora": ("deit_tiny_patch16_224", LoRA(rank=2, init="pissa", dora=True, targets=("k", "proj"))),
}


@pytest.mark.parametrize("case", CASES)
def test_peft_opens_the_adapter_with_the_same_logits(case: str, tmp_path: Path) -> None:
    name, method = CASES[case]
    model, base = base_of(name)
    adapter = trained(model, base, method)
    write_adapter(tmp_path / "adapter", adapter)

    opened = peft_reference.opened(base, tmp_path / "adapter")
    expected = logits(timm_of(merged(base, adapter)))
    assert relative(logits(opened), expected) < LOGITS
    assert relative(logits(timm_of(base)), expected) > 0.1  # so the adapter does something


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
    opened = peft_reference.opened(base, tmp_path / "ours")
    opened.save_pretrained(tmp_path / "theirs", save_embedding_layers=False)  # else it asks the hub
    again = read_adapter(tmp_path / "theirs")
    assert (again.model, again.classes, again.base_sha256, again.source) == (None, (), None, name)
    assert again.architecture is not None and again.architecture.patch_size == base.architecture.patch_size
    assert relative(logits(timm_of(merged(base, again))), logits(opened)) < LOGITS


@pytest.mark.parametrize("name", ["eva02_tiny_patch14_224", "beit_base_patch16_224"])
def test_where_timm_reads_a_layer_s_weight_itself_a_note_says_so_and_peft_s_merge_is_right(
    name: str, tmp_path: Path
) -> None:
    """Eva's and Beit's attention with biases multiply with ``qkv.weight``, past what PEFT puts around the layer."""
    model, base = base_of(name)
    adapter = trained(model, base, LoRA(rank=2, targets=("qkv",)))
    notes = write_adapter(tmp_path / "adapter", adapter)
    assert any("merge_and_unload" in note for note in notes)
    opened = peft_reference.opened(base, tmp_path / "adapter")
    expected = logits(timm_of(merged(base, adapter)))
    assert relative(logits(opened), expected) > 1e-3
    assert relative(logits(opened.merge_and_unload()), expected) < LOGITS
    quiet = write_adapter(tmp_path / "other", trained(model, base, LoRA(rank=2, targets=("proj",))))
    assert not any("merge_and_unload" in note for note in quiet)


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
    opened = peft.get_peft_model(timm_of(base), config).eval()
    opened.save_pretrained(tmp_path)
    adapter = read_adapter(tmp_path)
    assert adapter.method == LoRA(
        rank=4,
        alpha=6,
        dropout=0.25,
        targets=("qkv", "proj", "fc2"),
        rank_pattern={"fc2": 2},
        alpha_pattern={r"1\.mlp\.fc2": 12},
    )
    assert adapter.tensors["blocks.0.mlp.fc2.lora_A"].shape == (2, 96)
    assert relative(logits(timm_of(merged(base, adapter))), logits(opened)) < LOGITS


def test_a_dora_that_peft_trained_is_read(tmp_path: Path) -> None:
    name = "deit_tiny_patch16_224"
    _, base = base_of(name)
    config = peft.LoraConfig(
        r=3, target_modules=["qkv", "fc1"], use_dora=True, modules_to_save=["head"], init_lora_weights=False
    )
    opened = peft.get_peft_model(timm_of(base), config).eval()
    with torch.no_grad():
        for key, parameter in opened.named_parameters():
            if "magnitude" in key:
                parameter *= 1.5
    opened.save_pretrained(tmp_path)
    adapter = read_adapter(tmp_path)
    assert adapter.method == LoRA(rank=3, alpha=8, dora=True, targets=("qkv", "fc1"))
    assert relative(logits(timm_of(merged(base, adapter))), logits(opened)) < LOGITS
    assert relative(logits(timm_of(base)), logits(opened)) > 0.1


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_a_start_that_counts_and_peft_converted_is_read(init: Literal["pissa", "olora"], tmp_path: Path) -> None:
    name = "deit_tiny_patch16_224"
    _, base = base_of(name)
    config = peft.LoraConfig(r=3, lora_alpha=5, target_modules=["qkv", "fc1"], init_lora_weights=init)
    opened = peft.get_peft_model(timm_of(base), config).eval()
    config.init_lora_weights = True  # as its documentation has it: the start is kept, to be subtracted on saving
    opened.save_pretrained(tmp_path / "start")
    with torch.no_grad():
        for key, parameter in opened.named_parameters():
            if "lora_" in key:
                parameter += 0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    opened.save_pretrained(tmp_path / "end", path_initial_model_for_weight_conversion=str(tmp_path / "start"))
    adapter = read_adapter(tmp_path / "end")
    assert adapter.method == LoRA(rank=6, alpha=10, targets=("qkv", "fc1"))
    heads = {key: tensor for key, tensor in base.tensors.items() if key.startswith("head")}  # it saved none
    whole = dataclasses.replace(adapter, tensors=adapter.tensors | heads)
    assert relative(logits(timm_of(merged(base, whole))), logits(opened)) < LOGITS
    assert relative(logits(timm_of(base)), logits(opened)) > 0.1

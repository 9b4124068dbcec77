"""What the configuration of a LoRA says to PEFT, what it says to us, and what is refused of it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import peft
import peft_reference
import pytest
from by_hand import by_hand
from comparing import relative
from interop.lora_of_peft import LOGITS, base_of, logits, merged, trained
from peft_reference import timm_of

from convert.adapters.peft import read_adapter, write_adapter
from mlx_peft.config.methods import Full, Linear, LoRA, MethodConfig
from mlx_peft.core.errors import UserError


@pytest.mark.parametrize(
    ("changes", "blocks"),
    [
        ({}, None),
        ({"target_modules": r".*blocks\.\d+\..*\.(qkv|fc1)"}, None),
        ({"layers_to_transform": [0], "layers_pattern": "blocks"}, (0,)),
        ({"layers_to_transform": 1, "layers_pattern": "blocks"}, (1,)),
        ({"target_modules": r"blocks\.0\..*(qkv|fc1)"}, (0,)),
        ({"exclude_modules": r"blocks\.0\..*"}, (1,)),
    ],
)
def test_the_blocks_that_peft_adapted_are_the_methods(
    changes: dict[str, object], blocks: tuple[int, ...] | None, tmp_path: Path
) -> None:
    name = "deit_tiny_patch16_224"
    _, base = base_of(name)
    config = peft.LoraConfig(**({"r": 2, "target_modules": ["qkv", "fc1"]} | changes))
    peft.get_peft_model(timm_of(base), config).save_pretrained(tmp_path)
    adapter = read_adapter(tmp_path)
    assert isinstance(adapter.method, LoRA)
    assert adapter.method.blocks == blocks
    sites = adapter.method.sites(base.architecture)
    assert {key.rpartition(".")[0] for key in adapter.tensors} == {site.path for site in sites}


@pytest.mark.parametrize(
    ("method", "words"),
    [
        (LoRA(targets=("q", "v")), "one adapter of the whole qkv, of rank 2 times"),
        (LoRA(init="pissa"), "init: pissa is LoRA of twice the rank"),
        (LoRA(init="olora"), "init: olora is LoRA of twice the rank"),
        (LoRA(lora_plus=16), "loraplus_lr_ratio=16"),
        (LoRA(dora=True, rslora=True), None),
    ],
)
def test_what_peft_does_not_see_is_said(method: LoRA, words: str | None, tmp_path: Path) -> None:
    notes = write_adapter(tmp_path / "adapter", trained(*base_of("deit_tiny_patch16_224"), method))
    assert len(notes) == (words is not None)
    assert all(words in note for note in notes)


def test_where_q_k_and_v_are_layers_they_are_so_to_peft_and_no_note_speaks_of_qkv(tmp_path: Path) -> None:
    method = LoRA(targets=("q", "v"))
    assert write_adapter(tmp_path / "adapter", trained(*base_of("eva02_base_patch14_224"), method)) == []
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["r"] == method.rank


def test_a_rank_that_the_configuration_does_not_say_is_refused(tmp_path: Path) -> None:
    write_adapter(tmp_path / "adapter", trained(*base_of("deit_tiny_patch16_224"), LoRA(rank=2, targets=("proj",))))
    _, base = base_of("deit_tiny_patch16_224")
    opened = peft_reference.opened(base, tmp_path / "adapter")
    opened.save_pretrained(tmp_path / "theirs", save_embedding_layers=False)
    file = tmp_path / "theirs" / "adapter_config.json"
    by_hand(file, json.dumps(json.loads(file.read_text()) | {"rank_pattern": {"proj": 3}}))
    with pytest.raises(UserError, match=r"blocks\.0\.attn\.proj has the rank 2, but its configuration says 3"):
        read_adapter(tmp_path / "theirs")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target_modules": ["proj"]}, r"patch_embed\.proj is a convolution"),
        ({"target_modules": ["proj"], "use_dora": True}, r"patch_embed\.proj is a convolution"),
        ({"target_modules": ["qkv", "head"]}, r"no LoRA of a linear layer in a block: head\.lora_A\.weight"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights: pissa; PEFT converts it on saving"),
        ({"lora_bias": True, "init_lora_weights": False}, "not supported: lora_bias: True"),
        ({"modules_to_save": ["head", "norm"]}, r"no LoRA of a linear layer in a block: norm\.bias, norm\.weight"),
    ],
)
def test_more_than_lora_on_the_blocks_is_refused(changes: dict[str, object], message: str, tmp_path: Path) -> None:
    _, base = base_of("deit_tiny_patch16_224")
    config = peft.LoraConfig(**({"r": 2, "target_modules": r"blocks.*\.qkv"} | changes))
    peft.get_peft_model(timm_of(base), config).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=message):
        read_adapter(tmp_path)


def test_other_layers_in_each_block_are_read_as_ranks_of_0(tmp_path: Path) -> None:
    _, base = base_of("deit_tiny_patch16_224")
    config = peft.LoraConfig(
        r=2, target_modules=r"blocks\.(0\.attn\.qkv|1\.mlp\.fc1)", init_lora_weights=False,
        rank_pattern={"fc1": 3},
    )  # fmt: skip
    model = peft.get_peft_model(timm_of(base), config).eval()
    model.save_pretrained(tmp_path)
    adapter = read_adapter(tmp_path)
    assert isinstance(adapter.method, LoRA)
    ranks = {site.path: adapter.method.rank_of(site.path) for site in adapter.method.sites(base.architecture)}
    assert ranks == {"blocks.0.attn.qkv": 2, "blocks.1.mlp.fc1": 3}
    heads = {key: tensor for key, tensor in base.tensors.items() if key.startswith("head")}
    whole = dataclasses.replace(adapter, tensors=adapter.tensors | heads)
    assert relative(logits(timm_of(merged(base, whole))), logits(model)) < LOGITS


def test_another_method_of_pefts_is_refused_by_name(tmp_path: Path) -> None:
    _, base = base_of("deit_tiny_patch16_224")
    config = peft.HRAConfig(target_modules=r"blocks.*\.qkv")
    peft.get_peft_model(timm_of(base), config).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"peft_type 'HRA' is not supported \(known: .*LORA.*\)"):
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

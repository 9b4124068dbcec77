"""Adapters between mlx-peft and Hugging Face PEFT, on timm's models."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import peft
import peft_reference
import pytest
import torch
from by_hand import by_hand
from comparing import relative
from peft_reference import timm_of

from convert.adapters.peft import Adapter, read_adapter, write_adapter
from convert.base import Base, load_base
from mlx_peft.config.methods import Full, Linear, LoRA, MethodConfig
from mlx_peft.config.schema import Model
from mlx_peft.core.errors import UserError

LOGITS = 1e-5
"""Relative; float32, with W + s B A formed on one side only."""

SIZES = {"depth": 2, "embed_dim": 24, "num_heads": 3}
CLASSES = ("cat", "dog", "emu")


def base_of(name: str) -> tuple[Model, Base]:
    model = Model(name=name, weights="none", image_size=64, args=SIZES)  # type: ignore[arg-type]
    return model, load_base(model, len(CLASSES), seed=1)


def trained(model: Model, base: Base, method: LoRA) -> Adapter:
    """What a trainer would hand over, with random numbers in it."""
    random = np.random.default_rng(0)
    tensors = {}
    for site in method.sites(base.architecture):
        rank, norms = method.rank_of(site.path), np.linalg.norm(base.tensors[f"{site.path}.weight"], axis=1)
        for kind in ("lora", "pissa") if method.init == "pissa" else ("lora",):
            tensors[f"{site.path}.{kind}_A"] = random.normal(0, 0.2, (max(len(site.parts), 1) * rank, site.inputs))
            tensors[f"{site.path}.{kind}_B"] = random.normal(0, 0.2, (site.adapted, rank))
        if method.dora:
            adapted = np.concatenate([norms[rows] for rows in site.rows])
            tensors[f"{site.path}.lora_magnitude_vector"] = adapted * random.uniform(0.5, 1.5, len(adapted))
            if len(site.parts) in (1, 2):
                thirds = dict(zip("qkv", np.split(norms, 3), strict=True))
                rest = [third for part, third in thirds.items() if part not in site.parts]
                tensors[f"{site.path}.lora_magnitude_rest"] = np.concatenate(rest)
    tensors |= {name: random.normal(0, 0.2, t.shape) for name, t in base.tensors.items() if name.startswith("head")}
    held = {name: tensor.astype(np.float32) for name, tensor in tensors.items()}
    return Adapter(
        method=method, tensors=held, classes=CLASSES, model=model, architecture=base.architecture,
        preprocessing=base.preprocessing, base_sha256=base.sha256, source=base.source,
    )  # fmt: skip


def logits(model: torch.nn.Module) -> np.ndarray:
    torch.manual_seed(0)
    return peft_reference.logits(model, torch.randn(2, 3, 64, 64))


def merged(base: Base, adapter: Adapter) -> Base:
    """With the weights by the papers, each part of qkv on its own: V = W + s (B A - B0 A0), and with DoRA m V / |V|."""
    method, held = adapter.method, {name: tensor.astype(np.float64) for name, tensor in adapter.tensors.items()}
    assert isinstance(method, LoRA)
    tensors = base.tensors | {name: tensor for name, tensor in adapter.tensors.items() if name.startswith("head")}
    for site in method.sites(base.architecture):
        W, count = tensors[f"{site.path}.weight"].astype(np.float64), max(len(site.parts), 1)
        factors = [held.get(f"{site.path}.{name}") for name in ("lora_A", "lora_B", "pissa_A", "pissa_B")]
        split = [[0.0] * count if factor is None else np.split(factor, count) for factor in factors]
        m = np.split(held.get(f"{site.path}.lora_magnitude_vector", np.zeros(site.adapted)), count)
        for index, rows in enumerate(site.rows):
            A, B, A0, B0 = (factor[index] for factor in split)
            W[rows] += method.scaling_of(site.path) * (B @ A - (B0 @ A0 if method.init == "pissa" else 0))
            if method.dora:
                W[rows] *= (m[index] / np.linalg.norm(W[rows], axis=1))[:, None]
        tensors[f"{site.path}.weight"] = W.astype(np.float32)
    return dataclasses.replace(base, tensors=tensors)


CASES = {
    "all four": ("deit_tiny_patch16_224", LoRA(rank=4, alpha=10, targets=("qkv", "proj", "fc1", "fc2"))),
    "q and v": ("deit_tiny_patch16_224", LoRA(rank=3, alpha=5, targets=("q", "v"))),
    "k, rslora": ("vit_small_patch14_dinov2", LoRA(rank=4, rslora=True, targets=("k",))),
    "parts and wholes": ("deit_tiny_patch16_224", LoRA(rank=3, rslora=True, targets=("v", "q", "proj"))),
    "distilled": ("deit_tiny_distilled_patch16_224", LoRA(rank=2, targets=("qkv", "fc2"))),
    "attention pooling": ("vit_base_patch16_siglip_224", LoRA(rank=2, targets=("proj", "fc1", "fc2"))),
    "swiglu": ("aimv2_large_patch14_224", LoRA(rank=2, targets=("fc1", "proj"))),
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


def test_a_pissa_that_peft_converted_is_read(tmp_path: Path) -> None:
    name = "deit_tiny_patch16_224"
    _, base = base_of(name)
    config = peft.LoraConfig(r=3, lora_alpha=5, target_modules=["qkv", "fc1"], init_lora_weights="pissa")
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
        (LoRA(init="pissa"), "PiSSA is LoRA of twice the rank"),
        (LoRA(lora_plus=16), "loraplus_lr_ratio=16"),
        (LoRA(dora=True, rslora=True), None),
    ],
)
def test_what_peft_does_not_see_is_said(method: LoRA, words: str | None, tmp_path: Path) -> None:
    notes = write_adapter(tmp_path / "adapter", trained(*base_of("deit_tiny_patch16_224"), method))
    assert len(notes) == (words is not None)
    assert all(words in note for note in notes)


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
        ({"target_modules": r"blocks\.(0\.attn\.qkv|1\.mlp\.fc1)"}, "it adapts qkv in block 0 but fc1 in block 1"),
    ],
)
def test_more_than_lora_on_the_blocks_is_refused(changes: dict[str, object], message: str, tmp_path: Path) -> None:
    _, base = base_of("deit_tiny_patch16_224")
    config = peft.LoraConfig(**({"r": 2, "target_modules": r"blocks.*\.qkv"} | changes))
    peft.get_peft_model(timm_of(base), config).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=message):
        read_adapter(tmp_path)


def test_another_method_of_pefts_is_refused_by_name(tmp_path: Path) -> None:
    _, base = base_of("deit_tiny_patch16_224")
    config = peft.LoHaConfig(target_modules=r"blocks.*\.qkv")
    peft.get_peft_model(timm_of(base), config).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"peft_type 'LOHA' is not supported \(known: .*LORA.*\)"):
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

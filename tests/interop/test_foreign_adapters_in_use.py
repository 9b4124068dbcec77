"""peft's adapters over transformers' models where adapters are used: a bank, a model by hand, a run that goes on."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import peft
import pytest
import torch
from banks import SIDES
from comparing import LOGITS, relative
from fake_backend import make_dataset
from foreign_models import pixels
from interop.over_transformers import Family, as_version_4, logits, saved, trained

import mlx_peft as mp
from convert.adapters.peft import read_adapter
from mlx_peft.artifacts.load import load_run
from mlx_peft.config.schema import Experiment
from mlx_peft.core.errors import UserError
from mlx_peft.training.train import train

ROUNDED = 1e-6
"""Norms of rows of 24 float32 numbers, summed in another order."""

UNMOVED = 1e-5
"""What steps at a learning rate of 1e-9 can move."""

CONFIGS = {
    "old": peft.LoraConfig(r=4, lora_alpha=6, target_modules=["q_proj", "v_proj"], modules_to_save=["classifier"]),
    "dora": peft.LoraConfig(r=2, use_dora=True, target_modules=["q_proj", "fc2"], modules_to_save=["classifier"]),
    "ia3": peft.IA3Config(
        target_modules=["k_proj", "v_proj", "fc2"], feedforward_modules=["fc2"], modules_to_save=["classifier"]
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    """A ViT's adapters in one folder, one of them with the names of version 4, and peft's logits of each."""
    folder = tmp_path_factory.mktemp("vit")
    family, expected = saved("vit", folder / "base"), {}
    for name, config in CONFIGS.items():
        torch.manual_seed(0)
        model = trained(family.model(), config)
        model.save_pretrained(folder / "adapters" / name)
        expected[name] = logits(model)
    as_version_4(folder / "adapters" / "old", "vit")
    return SimpleNamespace(family=family, folder=folder / "adapters", expected=expected)


def network(side: str, family: Family, **args):
    named = family.named
    return SIDES[side].create_model(named.name, named.weights, num_classes=3, args={**named.args, **args}, head="new")


@pytest.mark.parametrize("side", SIDES)
def test_a_bank_mixes_them(vit, side):
    bank = SIDES[side].load_adapters(network(side, vit.family), vit.folder)
    assert set(bank) == set(CONFIGS) and not bank.refused
    names = ["dora", "old", "ia3", "old"]
    images = pixels()[[0, 1, 1, 0]]
    rows = [vit.expected[name][image] for name, image in zip(names, (0, 1, 1, 0), strict=True)]
    assert relative(bank.logits(images, names), np.array(rows)) <= LOGITS


@pytest.mark.parametrize("side", SIDES)
def test_a_model_takes_one_with_the_magnitudes_that_peft_leaves_out(vit, side, tmp_path):
    model = network(side, vit.family)
    weight = np.array(SIDES[side].state_dict(model)["blocks.0.attn.qkv.weight"])
    SIDES[side].load_adapter(model, vit.folder / "dora")
    SIDES[side].save_adapter(model, tmp_path / "ours")
    rest = read_adapter(tmp_path / "ours").tensors["blocks.0.attn.qkv.lora_magnitude_rest"]
    k_and_v = np.linalg.norm(weight[24:], axis=1)
    assert relative(rest, k_and_v) <= ROUNDED


def test_they_are_combined_over_a_folder_that_says_itself_what_model_it_is(vit, tmp_path):
    weights = str(vit.folder.parent / "base")
    mp.combine({vit.folder / "old": 2}, tmp_path / "one", base_weights=weights)
    twice = load_run(tmp_path / "one", "torch", weights=weights).model.logits(pixels())
    assert relative(load_run(vit.folder / "old", "torch", weights=weights).model.logits(pixels()), twice) > LOGITS
    mp.combine({vit.folder / "old": 1}, tmp_path / "same", base_weights=weights)
    assert (
        relative(load_run(tmp_path / "same", "torch", weights=weights).model.logits(pixels()), vit.expected["old"])
        <= LOGITS
    )


@pytest.mark.usefixtures("colours")
def test_a_run_goes_on_from_one(vit, tmp_path, monkeypatch):
    monkeypatch.setattr("mlx_peft.training.prepare.open_dataset", lambda config, watch=None: make_dataset())
    named = vit.family.named
    experiment = Experiment.model_validate({
        "backend": "torch",
        "model": {"name": named.name, "weights": named.weights, "args": named.args},
        "method": {
            "name": "lora", "rank": 2, "alpha": 8, "dora": True, "targets": ["q", "fc2"],
            "from": str(vit.folder / "dora"),
        },
        "data": {"name": "colours", "batch_size": 8, "threads": 1},
        "train": {"epochs": 1, "optimizer": {"name": "adamw", "lr": 1e-9}},
    })  # fmt: skip
    train(experiment, tmp_path / "run")
    before, after = (read_adapter(folder).tensors for folder in (vit.folder / "dora", tmp_path / "run" / "adapter"))
    assert {name for name in after if name not in before} == {
        f"blocks.{block}.attn.qkv.lora_magnitude_rest" for block in range(2)
    }
    assert all(relative(after[name], before[name]) <= UNMOVED for name in before if not name.startswith("head"))


def test_a_dinov2_whose_pooling_the_head_does_not_read_says_how_to_create_it(tmp_path):
    family = saved("dinov2", tmp_path / "base")
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["classifier"])
    trained(family.model(), config).save_pretrained(tmp_path / "adapter")
    assert read_adapter(tmp_path / "adapter").fields == {"global_pool": "token_avg"}
    model = network("torch", family, global_pool="token")
    with pytest.raises(UserError, match=r"its head is of another pooling.*\{'global_pool': 'token_avg'\}"):
        SIDES["torch"].load_adapter(model, tmp_path / "adapter")

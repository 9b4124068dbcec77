"""Adapters of peft's over torchvision's ViT, whose attention is one module: read, and written for peft."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import peft
import pytest
import torch
from comparing import LOGITS, relative
from foreign_models import SIZE, pixels, shaken
from interop.over_transformers import reopened, trained
from safetensors.torch import load_file, save_file
from torchvision.models import VisionTransformer

from convert.adapters.abroad import of_torchvision, write_for
from convert.adapters.peft import Adapter, read_adapter
from convert.base import load_base
from mlx_peft.artifacts.load import load_run
from mlx_peft.config.methods import IA3, LoRA
from mlx_peft.config.schema import Model
from mlx_peft.core.errors import UserError
from mlx_peft.protocols.loading import load_backend

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
FIELDS = {"embed_dim": 24, "depth": 2, "num_heads": 3, "patch_size": 8, "mlp_ratio": 50 / 24, "img_size": SIZE}


def theirs(file: Path | None = None) -> torch.nn.Module:
    torch.manual_seed(0)
    model = shaken(VisionTransformer(SIZE, 8, 2, 3, 24, 50, num_classes=3))
    if file is not None:
        model.load_state_dict(load_file(file))
    return model.eval()


def logits(model: torch.nn.Module) -> np.ndarray:
    mean, std = map(torch.tensor, IMAGENET)
    with torch.no_grad():
        return model(((torch.from_numpy(pixels()) / 255 - mean) / std).permute(0, 3, 1, 2)).numpy()


@pytest.fixture(scope="module")
def named(tmp_path_factory) -> Model:
    file = tmp_path_factory.mktemp("base") / "base.safetensors"
    save_file(theirs().state_dict(), file)
    fields = {key: value for key, value in FIELDS.items() if key != "img_size"}
    return Model(name="vit_b_16.IMAGENET1K_V1", weights=str(file), image_size=SIZE, args=fields)


CONFIGS = {
    "attention": peft.LoraConfig(r=4, lora_alpha=6, target_modules=["self_attention"], modules_to_save=["head"]),
    "all, with patterns": peft.LoraConfig(
        r=4, use_rslora=True, target_modules=["self_attention", "0", "3"], rank_pattern={"self_attention": 2},
        alpha_pattern={"mlp.0": 3}, modules_to_save=["head"],
    ),
    "dora of the mlp": peft.LoraConfig(r=3, use_dora=True, target_modules=["0", "3"], modules_to_save=["head"]),
}  # fmt: skip


@pytest.mark.parametrize("case", CONFIGS)
def test_pefts_adapter_gives_its_logits_and_goes_back(named, case, tmp_path):
    model = trained(theirs(), CONFIGS[case])
    model.save_pretrained(tmp_path / "peft")
    expected = logits(model)
    for backend in ("torch", "mlx"):
        loaded = load_run(tmp_path / "peft", backend, model=named)
        assert relative(loaded.model.logits(pixels()), expected) <= LOGITS
    write_for(of_torchvision, tmp_path / "ours", loaded.adapter, loaded.base.architecture)
    assert relative(logits(reopened(theirs(), tmp_path / "ours")), expected) <= LOGITS


def ours(named: Model, method: LoRA | IA3) -> Adapter:
    """An adapter of ours with random numbers, on torchvision's weights."""
    base = load_base(named, 3, seed=0)
    built = load_backend("torch").build_model(base, 3, method)
    random = np.random.default_rng(0)
    tensors = {name: random.normal(0, 0.2, t.shape).astype(np.float32) for name, t in built.adapter().items()}
    built.load_adapter(tensors)
    return Adapter(
        method=method, tensors=tensors, classes=("cat", "dog", "emu"), model=named, architecture=base.architecture,
        preprocessing=base.preprocessing, base_sha256=base.sha256, source=base.source,
    )  # fmt: skip


@pytest.mark.parametrize(
    "method",
    [
        LoRA(rank=2, alpha=6, targets=("q", "v", "fc1")),
        LoRA(rank=4, targets=("proj",), blocks=(1,)),
        LoRA(rank=4, targets=("qkv", "proj"), rslora=True, rank_pattern={"proj": 2}, alpha_pattern={"qkv": 3}),
        LoRA(rank=3, dora=True, targets=("fc1", "fc2")),
        IA3(targets=("fc1", "fc2")),
    ],
    ids=["parts", "out alone", "two ranks", "dora of the mlp", "ia3 of the mlp"],
)  # fmt: skip
def test_what_adapts_one_projection_adds_nothing_to_the_other(named, method, tmp_path):
    adapter = ours(named, method)
    base = load_base(named, 3, seed=0)
    built = load_backend("torch").build_model(base, 3, method)
    built.load_adapter(adapter.tensors)
    write_for(of_torchvision, tmp_path / "theirs", adapter, base.architecture)
    expected = logits(reopened(theirs(), tmp_path / "theirs"))
    assert relative(built.logits(pixels()), expected) <= LOGITS
    again = load_run(tmp_path / "theirs", "torch", model=named)
    assert relative(again.model.logits(pixels()), expected) <= LOGITS


@pytest.mark.parametrize(
    "method", [IA3(targets=("qkv", "fc2")), LoRA(dora=True, targets=("q", "v"))], ids=["ia3", "dora"]
)
def test_what_peft_cannot_put_on_torchs_attention_is_refused(named, method, tmp_path):
    adapter = ours(named, method)
    with pytest.raises(UserError, match="to the attention of torch, Hugging Face PEFT can put plain LoRA and nothing"):
        write_for(of_torchvision, tmp_path / "theirs", adapter, adapter.architecture)
    assert not (tmp_path / "theirs").exists()


def test_an_adapter_on_the_projection_alone_which_torch_never_runs_is_refused(tmp_path):
    config = peft.LoraConfig(r=4, target_modules=["out_proj"], modules_to_save=["head"])
    trained(theirs(), config).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="torch's attention never runs its out_proj"):
        read_adapter(tmp_path)

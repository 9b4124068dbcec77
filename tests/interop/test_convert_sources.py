"""What the convert command reads besides plain models: runs, adapters, training checkpoints, towers."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import numpy as np
import peft
import pytest
import timm
import torch
import transformers
from by_hand import by_hand
from foreign_models import SIZE, SMALL, on_disk, shaken
from interop.converting import ARGS, CLASSES, command, converted

import torch_ref
from mlx_peft.config.files import dump, load
from mlx_peft.config.methods import LoRA
from mlx_peft.config.schema import Data, Experiment


@pytest.fixture(scope="module")
def run(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a finished run leaves, with an adapter that changes every logit."""
    method = LoRA(rank=4, targets=("q", "v", "fc1"))
    model = torch_ref.create_model("vit_tiny_patch16_224", str(source), num_classes=3, image_size=SIZE)
    torch_ref.add_adapter(model, method)
    for name, parameter in model.named_parameters():
        if name.endswith("lora_B"):
            torch.nn.init.normal_(parameter, std=0.1)
    out = tmp_path_factory.mktemp("runs") / "run"
    torch_ref.save_adapter(model, out / "adapter", CLASSES)
    experiment = Experiment(backend="torch", model=model.description, method=method, data=Data(name="none"))
    by_hand(out / "config.yaml", dump(experiment))
    return out


@pytest.mark.parametrize("to", ["timm", "transformers"])
def test_a_run_is_merged_and_held_against_peft(to: str, run: Path, tmp_path: Path) -> None:
    report = converted(run, tmp_path / "out", "--to", to)
    assert report["source"]["kind"] == "run"
    rows = report["proof"]["rows"]
    assert {"the source in peft against mlx", "the source in torch, unmerged against torch"} <= rows.keys()


def test_a_runs_adapter_is_pefts(run: Path, tmp_path: Path) -> None:
    report = converted(run, tmp_path / "out", "--to", "peft")
    assert "the result in peft against torch" in report["proof"]["rows"]
    assert peft.PeftConfig.from_pretrained(tmp_path / "out").peft_type == "LORA"
    model = load(run / "config.yaml").model  # which the adapter names without its place
    base = ("--model", model.name, "--weights", model.weights)
    again = converted(tmp_path / "out", tmp_path / "again", "--to", "peft", "--no-verify", *base)
    assert again["source"]["kind"] == "peft"


def test_a_whole_model_is_no_adapter(source: Path, tmp_path: Path) -> None:
    refused = command(source, tmp_path / "out", "--to", "peft")
    assert refused.exit_code == 2 and "name a run or an adapter" in refused.stderr


def test_the_original_file_of_dino_asks_which_model_is_meant(tmp_path: Path) -> None:
    models = [
        shaken(timm.create_model("vit_tiny_patch16_224", img_size=SIZE, num_classes=0, **ARGS), s) for s in (1, 2)
    ]
    student, teacher = ({f"backbone.{key}": value for key, value in model.state_dict().items()} for model in models)
    head = {"head.mlp.0.weight": torch.ones(2, 2), "head.last_layer.weight_g": torch.ones(2, 1)}
    content = {
        "student": {f"module.{key}": value for key, value in (student | head).items()},
        "teacher": teacher | head,
        "epoch": 100,
        "args": argparse.Namespace(lr=0.1),
    }
    torch.save(content, tmp_path / "dino.pth")
    sizes = [option for key, value in ARGS.items() for option in ("--set", f"{key}={value}")]
    asked = [tmp_path / "dino.pth", tmp_path / "out", "--to", "mlx", "--model", "vit_small_patch16_224.dino", *sizes]
    asked += ["--set", f"img_size={SIZE}"]
    refused = command(*asked)
    assert refused.exit_code == 2 and "choose the part teacher or student (--part NAME)" in refused.stderr
    converted(*asked, "--part", "teacher")
    for name, tensor in models[1].state_dict().items():
        np.testing.assert_array_equal(on_disk(tmp_path / "out")[name], tensor.numpy())


def test_a_training_checkpoint_of_deit_offers_both_of_its_models(tmp_path: Path) -> None:
    state = timm.create_model("deit_tiny_patch16_224", img_size=SIZE, num_classes=5, **ARGS).state_dict()
    torch.save({"model": state, "model_ema": {k: 2 * v for k, v in state.items()}, "epoch": 3}, tmp_path / "a.pth")
    sizes = [option for key, value in ARGS.items() for option in ("--set", f"{key}={value}")]
    asked = [tmp_path / "a.pth", tmp_path / "out", "--to", "mlx", "--model", "deit_tiny_patch16_224.fb_in1k", *sizes]
    asked += ["--set", f"img_size={SIZE}"]
    refused = command(*asked)
    assert refused.exit_code == 2 and "choose the part model or model_ema (--part NAME)" in refused.stderr
    converted(*asked, "--part", "model")
    np.testing.assert_array_equal(on_disk(tmp_path / "out")["head.weight"], state["head.weight"].numpy())


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_a_whole_repository_of_images_and_texts_becomes_its_images_tower(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    text = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 3, "intermediate_size": 48}
    config, whole, processor = {
        "clip": (transformers.CLIPConfig, transformers.CLIPModel, transformers.CLIPImageProcessor),
        "siglip": (transformers.SiglipConfig, transformers.SiglipModel, transformers.SiglipImageProcessor),
    }[kind]
    shaken(whole(config(vision_config=SMALL, text_config=text | {"vocab_size": 50}))).save_pretrained(tmp_path / "a")
    processor(size={"height": 32, "width": 32}, do_center_crop=False).save_pretrained(tmp_path / "a")
    report = converted(tmp_path / "a", tmp_path / "out", "--to", "transformers")
    opened = {"clip": "CLIPVisionModelWithProjection", "siglip": "SiglipVisionModel"}[kind]
    assert f"transformers.{opened}.from_pretrained" in report["opened"] and report["proof"]
    getattr(transformers, opened).from_pretrained(tmp_path / "out")


def test_a_crop_that_other_tags_do_not_have_is_said(tmp_path: Path) -> None:
    state = timm.create_model("deit3_small_patch16_224", depth=1, num_classes=5).state_dict()
    torch.save(state, tmp_path / "a.pth")
    asked = [tmp_path / "a.pth", tmp_path / "out", "--to", "mlx", "--set", "depth=1", "--no-verify"]
    notes = converted(*asked, "--model", "deit3_small_patch16_224")["notes"]
    assert any("prepared as for deit3_small_patch16_224.fb_in1k" in n and "fb_in22k_ft_in1k" in n for n in notes)
    shutil.rmtree(tmp_path / "out")
    assert not converted(*asked, "--model", "deit3_small_patch16_224.fb_in1k")["notes"]

"""An adapter that PEFT wrote, used from the command line: its model is named there."""

import json

import numpy as np
import peft
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner

from mlx_peft.cli.app import app
from mlx_peft.config.schema import Model
from mlx_peft.engine.load import load_run

NAME, CLASSES = "vit_tiny_patch16_224.augreg_in21k", 3
LOGITS = 1e-5  # relative, float32


@pytest.fixture(scope="module")
def foreign(tmp_path_factory):
    """PEFT's model, the weights' file, and the adapter's folder."""
    folder = tmp_path_factory.mktemp("foreign")
    torch.manual_seed(0)
    base = timm.create_model(NAME.partition(".")[0], num_classes=CLASSES)
    save_file(base.state_dict(), folder / "base.safetensors")
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["qkv"], modules_to_save=["head"])
    model = peft.get_peft_model(base, config).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name or "modules_to_save" in name:
                p.normal_(std=0.1)
    model.save_pretrained(folder / "adapter")
    return model, folder


def test_it_gives_pefts_logits(foreign):
    model, folder = foreign
    named = Model(name=NAME, weights=str(folder / "base.safetensors"))
    loaded = load_run(folder / "adapter", "torch", model=named)
    images = np.random.default_rng(0).integers(0, 256, (2, 224, 224, 3), dtype=np.uint8)
    with torch.no_grad():
        expected = model(((torch.from_numpy(images) / 255 - 0.5) / 0.5).permute(0, 3, 1, 2)).numpy()
    difference = loaded.learner.logits(images) - expected
    assert np.linalg.norm(difference) <= LOGITS * np.linalg.norm(expected)


def test_the_command_asks_for_the_model_and_takes_it(foreign, tmp_path):
    _, folder = foreign
    Image.new("RGB", (300, 200), "red").save(tmp_path / "red.png")
    predict = ["predict", str(folder / "adapter"), str(tmp_path / "red.png"), "--json"]
    refused = CliRunner().invoke(app, predict, obj="torch")
    assert (refused.exit_code, refused.stdout) == (2, "") and "--model NAME" in refused.stderr
    named = [*predict, "--model", NAME, "--weights", str(folder / "base.safetensors")]
    done = CliRunner().invoke(app, named, obj="torch")
    assert json.loads(done.stdout)[0]["predictions"][0]["class"] in {"0", "1", "2"}
    alone = CliRunner().invoke(app, [*predict, "--weights", "here"], obj="torch")
    assert alone.exit_code == 2 and "--weights needs --model" in alone.stderr

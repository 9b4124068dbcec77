"""An adapter that PEFT wrote, used from the command line: its model is named there."""

import dataclasses
import json

import numpy as np
import peft
import pytest
import timm
import torch
from comparing import relative
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner

from convert.adapters.peft import write_adapter
from mlx_peft.artifacts.load import load_run
from mlx_peft.cli.app import app
from mlx_peft.config.schema import Model
from mlx_peft.core.errors import UserError

NAME, CLASSES = "vit_tiny_patch16_224.augreg_in21k", 3
LOGITS = 1e-5  # relative, float32


def saved_by_peft(base, folder):
    """PEFT's model over a base, with factors and a head as if trained; its adapter is left in the folder."""
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["qkv"], modules_to_save=["head"])
    model = peft.get_peft_model(base, config).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name or "modules_to_save" in name:
                p.normal_(std=0.1)
    model.save_pretrained(folder / "adapter")
    return model


@pytest.fixture(scope="module")
def foreign(tmp_path_factory):
    """PEFT's model, the weights' file, and the adapter's folder."""
    folder = tmp_path_factory.mktemp("foreign")
    torch.manual_seed(0)
    base = timm.create_model(NAME.partition(".")[0], num_classes=CLASSES)
    save_file(base.state_dict(), folder / "base.safetensors")
    return saved_by_peft(base, folder), folder


def test_it_gives_pefts_logits(foreign):
    model, folder = foreign
    named = Model(name=NAME, weights=str(folder / "base.safetensors"))
    loaded = load_run(folder / "adapter", "torch", model=named)
    images = np.random.default_rng(0).integers(0, 256, (2, 224, 224, 3), dtype=np.uint8)
    with torch.no_grad():
        expected = model(((torch.from_numpy(images) / 255 - 0.5) / 0.5).permute(0, 3, 1, 2)).numpy()
    assert relative(loaded.model.logits(images), expected) <= LOGITS


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
    assert alone.exit_code == 2 and "does not say which model it belongs to" in alone.stderr


@pytest.fixture(scope="module")
def smaller(tmp_path_factory):
    """The same at another image size, of which PEFT writes nothing."""
    folder = tmp_path_factory.mktemp("smaller")
    torch.manual_seed(0)
    base = timm.create_model(NAME.partition(".")[0], num_classes=1000, depth=2)
    save_file(base.state_dict(), folder / "base.safetensors")
    overlay = {"file": str(folder / "base.safetensors"), "num_classes": 1000}
    theirs = timm.create_model(
        NAME.partition(".")[0],
        img_size=96,
        depth=2,
        num_classes=CLASSES,
        pretrained=True,
        pretrained_cfg_overlay=overlay,
    )
    save_file(theirs.state_dict(), folder / "resized.safetensors")
    return saved_by_peft(theirs, folder), folder


@pytest.mark.parametrize("weights", ["base", "resized"])
def test_the_image_size_that_peft_trained_at_can_be_told(smaller, weights):
    model, folder = smaller
    named = Model(name=NAME, weights=str(folder / f"{weights}.safetensors"), image_size=96, args={"depth": 2})
    loaded = load_run(folder / "adapter", "torch", model=named)
    images = np.random.default_rng(0).integers(0, 256, (2, 96, 96, 3), dtype=np.uint8)
    with torch.no_grad():
        expected = model(((torch.from_numpy(images) / 255 - 0.5) / 0.5).permute(0, 3, 1, 2)).numpy()
    assert relative(loaded.model.logits(images), expected) <= LOGITS
    assert not [note for note in loaded.base.notes if note.startswith("head")]  # which is the adapter's


def test_every_command_that_opens_an_adapter_takes_it(foreign, tmp_path):
    _, folder = foreign
    Image.new("RGB", (300, 200), "red").save(tmp_path / "red.png")
    named = ["--model", NAME, "--weights", str(folder / "base.safetensors"), "--image-size", "96"]
    adapter = str(folder / "adapter")
    for command, out in (
        (["predict", adapter, str(tmp_path / "red.png")], None),
        (["merge", adapter, str(tmp_path / "merged")], "merged"),
        (["quantize", adapter, str(tmp_path / "quantized"), "--bits", "8"], "quantized"),
        (["convert", adapter, str(tmp_path / "converted"), "--to", "timm", "--no-verify"], "converted"),
    ):
        alone = CliRunner().invoke(app, [*command, "--image-size", "96"], obj="torch")
        assert alone.exit_code == 2 and "--image-size" in alone.stderr
        done = CliRunner().invoke(app, [*command, *named], obj="torch")
        assert done.exit_code == 0, done.output
        assert "a new one" not in done.output
        if out is not None:
            size = json.loads((tmp_path / out / "config.json").read_text())["pretrained_cfg"]["input_size"]
            assert size == [3, 96, 96]


def test_an_adapter_that_says_its_image_size_is_not_told_another(foreign, tmp_path):
    _, folder = foreign
    named = Model(name=NAME, weights=str(folder / "base.safetensors"))
    loaded = load_run(folder / "adapter", "torch", model=named)
    write_adapter(tmp_path / "ours", dataclasses.replace(loaded.adapter, model=named))
    with pytest.raises(UserError, match="says itself at which image size it was trained: leave the image size out"):
        load_run(tmp_path / "ours", "torch", model=named.model_copy(update={"image_size": 96}))

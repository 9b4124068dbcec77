"""peft's own example of image classification: a ViT, query and value, r 16, the classifier in modules_to_save.

Its adapters were made under transformers 4, whose names transformers 5 no longer has, and peft no longer opens there.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
import transformers
from comparing import LOGITS, relative
from foreign_models import SMALL, pixels
from PIL import Image
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

from mlx_peft.artifacts.load import load_run
from mlx_peft.cli.app import app

CLASSES = 101
LABELS = {"id2label": {index: f"food {index}" for index in range(CLASSES)}}
EXAMPLE = {"r": 16, "lora_alpha": 16, "lora_dropout": 0.1, "bias": "none", "modules_to_save": ["classifier"]}
SIZES = [
    pytest.param(SMALL, id="narrow"),
    pytest.param({"image_size": 224}, id="ViT-B", marks=pytest.mark.slow),
]


def example(size: dict, folder: Path) -> tuple[np.ndarray, int]:
    """The example's model and adapter, with random weights, under the names of version 4; and peft's logits of it."""
    torch.manual_seed(0)
    base = transformers.ViTForImageClassification(transformers.ViTConfig(**size, **LABELS))
    base.save_pretrained(folder / "vit")
    side = base.config.image_size
    transformers.ViTImageProcessor(size={"height": side, "width": side}).save_pretrained(folder / "vit")
    model = peft.get_peft_model(base, peft.LoraConfig(**EXAMPLE, target_modules=["q_proj", "v_proj"])).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name or "modules_to_save" in name:
                parameter += 0.1 * torch.randn(parameter.shape)
        inputs = ((torch.from_numpy(pixels(side)) / 255 - 0.5) / 0.5).permute(0, 3, 1, 2)
        expected = model(pixel_values=inputs).logits.numpy()
    model.save_pretrained(folder / "adapter")
    file = folder / "adapter" / "adapter_model.safetensors"
    save_file({in_version_4(name): tensor for name, tensor in load_file(file).items()}, file, {"format": "pt"})
    said = json.loads((folder / "adapter" / "adapter_config.json").read_text())
    (folder / "adapter" / "adapter_config.json").write_text(json.dumps(said | {"target_modules": ["value", "query"]}))
    return expected, side


def in_version_4(name: str) -> str:
    """``base_model.model.vit.encoder.layer.0.attention.attention.query.lora_A.weight``, as files of it have it."""
    return (
        name.replace("vit.layers.", "vit.encoder.layer.")
        .replace("attention.q_proj", "attention.attention.query")
        .replace("attention.v_proj", "attention.attention.value")
    )


@pytest.mark.parametrize("size", SIZES)
def test_it_opens_with_pefts_logits_where_peft_finds_no_layer(size, tmp_path):
    expected, side = example(size, tmp_path)
    with pytest.raises(ValueError, match="No modules were targeted"):
        base = transformers.ViTForImageClassification.from_pretrained(tmp_path / "vit")
        peft.PeftModel.from_pretrained(base, tmp_path / "adapter")
    for backend in ("torch", "mlx"):
        loaded = load_run(tmp_path / "adapter", backend, weights=str(tmp_path / "vit"))
        assert relative(loaded.model.logits(pixels(side)), expected) <= LOGITS


def run(*words: object) -> str:
    done = CliRunner().invoke(app, list(map(str, words)), obj="torch")
    assert done.exit_code == 0, done.output
    return done.stdout


def test_every_command_takes_it(tmp_path):
    expected, side = example(SMALL, tmp_path)
    adapter, weights = tmp_path / "adapter", ["--weights", tmp_path / "vit"]
    told = json.loads(run("info", adapter, "--json"))
    assert told["over"] == "transformers 4's ViTForImageClassification" and told["options"]["targets"] == ["q", "v"]
    Image.fromarray(pixels(side)[0]).save(tmp_path / "image.png")
    answer = json.loads(run("predict", adapter, tmp_path / "image.png", *weights, "--json"))
    assert answer[0]["predictions"][0]["class"] == str(expected[0].argmax())
    run("merge", adapter, tmp_path / "merged", *weights)
    for to in ("peft", "peft-transformers", "peft-transformers4"):
        done = json.loads(run("convert", adapter, tmp_path / to, "--to", to, *weights, "--json"))
        compared = [
            row for row in done["proof"]["rows"] if row.startswith(("the source in peft", f"the result in {to} "))
        ]
        assert len(compared) == (2 if to == "peft" else 4)  # timm cannot be told the epsilon of transformers' ViT
        assert done["proof"]["largest"] <= LOGITS
    images = pixels(side)
    for to in ("peft-transformers", "peft-transformers4"):
        again = load_run(tmp_path / to, "torch", weights=str(tmp_path / "vit"))
        assert relative(again.model.logits(images), expected) <= LOGITS
    ours = load_run(tmp_path / "peft", "torch")
    assert relative(ours.model.logits(images), expected) <= LOGITS
    back = json.loads(run("convert", tmp_path / "peft", tmp_path / "back", "--to", "peft-transformers", "--json"))
    assert back["proof"]["largest"] <= LOGITS

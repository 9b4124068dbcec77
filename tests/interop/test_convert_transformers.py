"""The convert command on folders of transformers: what they say, and what timm cannot be told of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import transformers
from by_hand import by_hand
from comparing import LOGITS, relative
from foreign_models import SIZE, logits, on_disk, pixels, prepared, shaken
from interop.converting import CLASSES, command, converted

from convert.base import whole
from convert.layouts.layout import Asked
from convert.open import open_path
from mlx_peft.artifacts.load import load_model
from mlx_peft.core.errors import UserError


def huggingface(folder: Path, **options: Any) -> torch.nn.Module:
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128, image_size=SIZE,
        patch_size=8, id2label=dict(enumerate(CLASSES)), **options,
    )  # fmt: skip
    model = shaken(transformers.ViTForImageClassification(config))
    model.save_pretrained(folder)
    transformers.ViTImageProcessor(size={"height": SIZE, "width": SIZE}).save_pretrained(folder)
    return model


def test_a_processor_for_another_size_than_the_models_is_noted(tmp_path: Path) -> None:
    huggingface(tmp_path / "hf")
    assert not open_path(tmp_path / "hf", Asked()).notes
    transformers.ViTImageProcessor(size={"height": 384, "width": 384}).save_pretrained(tmp_path / "hf")
    [note] = open_path(tmp_path / "hf", Asked()).notes
    assert "prepares images of 384 pixels, and the model is of 32: they are prepared at 32" in note


def test_labels_of_transformers_are_as_many_as_its_head_has_rows(tmp_path: Path) -> None:
    huggingface(tmp_path / "hf")
    path = tmp_path / "hf" / "config.json"
    by_hand(path, json.dumps(json.loads(path.read_text()) | {"id2label": {"0": "cat", "1": "dog"}}))
    with pytest.raises(UserError, match="id2label: 2 names, and the head has 3 rows"):
        open_path(tmp_path / "hf", Asked())


def test_an_epsilon_that_timm_cannot_have_is_refused_unless_timms_is_taken(tmp_path: Path) -> None:
    huggingface(tmp_path / "hf", layer_norm_eps=1e-3)
    refused = command(tmp_path / "hf", tmp_path / "out", "--to", "timm")
    assert refused.exit_code == 2 and "another norm_eps" in refused.stderr and "--set" in refused.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf"]
    report = converted(tmp_path / "hf", tmp_path / "out", "--to", "timm", "--set", "norm_eps=1e-6")
    assert report["proof"]["change"]["the fields that were set"] > LOGITS
    assert timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).blocks[0].norm1.eps == 1e-6


def test_what_timm_has_no_words_for_is_kept_by_our_own_folder_and_refused_by_timm(tmp_path: Path) -> None:
    model = huggingface(tmp_path / "hf", layer_norm_eps=1e-3)
    converted(tmp_path / "hf", tmp_path / "out", "--to", "mlx")
    base = whole(open_path(tmp_path / "out", Asked()))
    assert base.architecture.norm_eps == 1e-3
    with torch.no_grad():
        expected = model(pixel_values=prepared(pixels(), base)).logits.numpy()
    assert relative(logits(base, "mlx", pixels()), expected) <= LOGITS
    with pytest.raises(RuntimeError, match="Unknown model"):
        timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True)
    converted(tmp_path / "out", tmp_path / "back", "--to", "transformers")  # proved without timm
    for key, tensor in on_disk(tmp_path / "hf").items():
        np.testing.assert_array_equal(on_disk(tmp_path / "back")[key], tensor, err_msg=key)


def test_images_are_predicted_with_a_folder_of_transformers_and_with_our_own(tmp_path: Path) -> None:
    model = huggingface(tmp_path / "hf", layer_norm_eps=1e-3)
    converted(tmp_path / "hf", tmp_path / "ours", "--to", "mlx", "--no-verify")
    for folder in ("hf", "ours"):
        loaded = load_model(tmp_path / folder, "torch")
        with torch.no_grad():
            expected = model(pixel_values=prepared(pixels(), loaded.base)).logits.numpy()
        assert relative(loaded.model.logits(pixels()), expected) <= LOGITS
        assert loaded.classes == CLASSES


def test_a_model_without_a_classifier_predicts_nothing(tmp_path: Path) -> None:
    config = transformers.Dinov2Config(hidden_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=SIZE)
    transformers.Dinov2Model(config).save_pretrained(tmp_path / "hf")
    transformers.BitImageProcessor(crop_size={"height": SIZE, "width": SIZE}).save_pretrained(tmp_path / "hf")
    with pytest.raises(UserError, match="the model has no classifier: train one"):
        load_model(tmp_path / "hf")

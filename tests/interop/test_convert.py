"""The convert command from format to format: each opened by its own library, with the same logits."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
import transformers
from comparing import LOGITS, relative
from foreign_models import SIZE, on_disk, pixels
from interop.converting import ARGS, CLASSES, command, converted, normalised, theirs, write
from PIL import Image
from safetensors.torch import load_file, save_file
from torchvision.models import VisionTransformer

from convert.base import whole
from convert.layouts.layout import Asked
from convert.open import open_path
from mlx_peft.artifacts.load import load_model
from mlx_peft.core.errors import UserError
from mlx_peft.data.recipe import eval_image


def test_timms_folder_becomes_transformers(source: Path, tmp_path: Path) -> None:
    report = converted(source, tmp_path / "out", "--to", "transformers")
    model = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        found = model(pixel_values=normalised(pixels())).logits.numpy()
    assert relative(found, theirs(source, pixels())) <= LOGITS
    assert tuple(model.config.id2label.values()) == CLASSES
    rows = report["proof"]["rows"]
    assert {"the source in timm folder against mlx", "the result in transformers against mlx"} <= rows.keys()
    assert report["proof"]["largest"] == max(rows.values()) <= LOGITS

    recipe = whole(open_path(source, Asked())).preprocessing
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "out")
    photo = np.asarray(Image.effect_noise((61, 47), 80).convert("RGB").resize((122, 94)))
    prepared_there = processor(photo, return_tensors="pt").pixel_values[0].permute(1, 2, 0).numpy()
    ours = (eval_image(photo, recipe, SIZE) / 255 - 0.5) / 0.5
    assert prepared_there.shape == ours.shape
    assert np.abs(prepared_there - ours).max() <= 2 * 2 / 255, "two levels: each library rounds after each pass"


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_a_representation_layer_is_left_out_with_its_head_and_the_features_are_timms(
    kind: str, source: Path, tmp_path: Path
) -> None:
    """timm drops the layer and keeps the head, whose logits then mean nothing."""
    shutil.copytree(source, tmp_path / "old")
    file = tmp_path / "old" / "model.safetensors"
    layer = {"pre_logits.fc.weight": torch.randn(64, 64), "pre_logits.fc.bias": torch.randn(64)}
    save_file(load_file(file) | layer, file)
    named = ["--model", "vit_tiny_patch16_224.augreg_in21k", *(f"--set={k}={v}" for k, v in ARGS.items())]
    asked = [tmp_path / "old"] if kind == "folder" else [file, *named]
    done = command(*asked, tmp_path / "out", "--to", "mlx")
    assert done.exit_code == 0, done.stderr
    assert "note: pre_logits: the hidden layer before the head, and the head behind it, are left out" in done.stdout
    assert f"  the source in timm{' folder' if kind == 'folder' else ''} against torch\n" in done.stdout
    assert "label_names" not in json.loads((tmp_path / "out" / "config.json").read_text())
    features = timm.create_model(f"local-dir:{source}", pretrained=True, num_classes=0).eval()
    found = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    with torch.no_grad():
        images = normalised(pixels())
        assert relative(found(images).numpy(), features(images).numpy()) == 0

    refused = command(*asked, tmp_path / "x.onnx", "--to", "onnx")
    assert refused.exit_code == 2 and "\n  note: pre_logits: the hidden layer before the head" in refused.stderr
    with pytest.raises(UserError, match=r"no classifier: train one, .*\n  note: pre_logits: the hidden layer"):
        load_model(tmp_path / "old", "torch")


def test_timms_folder_becomes_torchvisions_state_dictionary(source: Path, tmp_path: Path) -> None:
    report = converted(source, tmp_path / "out", "--to", "torchvision")
    model = VisionTransformer(
        image_size=SIZE, patch_size=8, num_layers=2, num_heads=2, hidden_dim=64, mlp_dim=256, num_classes=3
    )
    model.load_state_dict(load_file(tmp_path / "out" / "model.safetensors"))
    with torch.no_grad():
        assert relative(model.eval()(normalised(pixels())).numpy(), theirs(source, pixels())) <= LOGITS
    assert any("no preprocessing" in note and "(0.5, 0.5, 0.5)" in note for note in report["notes"])


def test_a_chain_through_every_format_ends_where_it_began(source: Path, tmp_path: Path) -> None:
    for step, (before, to) in enumerate(
        [(source, "transformers"), (tmp_path / "0", "mlx"), (tmp_path / "1", "torchvision")]
    ):
        converted(before, tmp_path / str(step), "--to", to)
    last = [tmp_path / "2", tmp_path / "back", "--to", "timm", "--set", "num_heads=2", "--model", "vit_b_32"]
    converted(*last)  # torchvision's file says neither its heads nor its recipe: vit_b_32's stands for it
    before, after = on_disk(source), on_disk(tmp_path / "back")
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        np.testing.assert_array_equal(after[name], tensor, err_msg=name)


@pytest.mark.parametrize(("dtype", "most"), [("bfloat16", 0.02), ("float16", 0.003)])
@pytest.mark.parametrize("to", ["mlx", "transformers", "timm"])
def test_half_precision_is_rounded_and_its_cost_said(
    to: str, dtype: str, most: float, source: Path, tmp_path: Path
) -> None:
    report = converted(source, tmp_path / "out", "--to", to, "--dtype", dtype)
    assert 0 < report["proof"]["change"]["fewer bits"] < most
    assert report["proof"]["largest"] <= LOGITS, "what was written is what was rounded"
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert {str(tensor.dtype) for tensor in stored.values()} == {f"torch.{dtype}"}
    name = next(name for name in stored if name.endswith("cls_token"))
    rounded = torch.from_numpy(on_disk(source)["cls_token"]).to(getattr(torch, dtype))
    assert torch.equal(stored[name], rounded)


@pytest.mark.parametrize("backend", ["torch", "mlx"])
def test_codes_are_mlxs(backend: str, source: Path, tmp_path: Path) -> None:
    report = converted(source, tmp_path / "out", "--to", "mlx", "--bits", 4, "--group-size", 32, backend=backend)
    assert report["proof"]["change"]["fewer bits"] > 0
    import mlx.core as mx  # after torch: see mlx_peft.backend.blas

    stored, plain = mx.load(str(tmp_path / "out" / "model.safetensors")), on_disk(source)
    codes, scales, biases = mx.quantize(mx.array(plain["blocks.1.mlp.fc2.weight"]), 32, 4)
    for name, expected in {"weight": codes, "scales": scales, "biases": biases}.items():
        np.testing.assert_array_equal(np.array(stored[f"blocks.1.mlp.fc2.{name}"]), np.array(expected))
    again = command(tmp_path / "out", tmp_path / "plain", "--to", "timm")
    assert again.exit_code == 0, again.stderr
    assert on_disk(tmp_path / "plain").keys() == plain.keys()


def test_another_image_size_resizes_the_grid_as_timm_does(source: Path, tmp_path: Path) -> None:
    report = converted(source, tmp_path / "out", "--to", "timm", "--image-size", 48)
    assert any("4 x 4 resized to 6 x 6" in note for note in report["notes"])
    expected = timm.create_model(f"local-dir:{source}", pretrained=True, img_size=48).state_dict()["pos_embed"].numpy()
    np.testing.assert_allclose(on_disk(tmp_path / "out")["pos_embed"], expected, atol=1e-6)


def test_a_bare_files_grid_is_resized_only_where_that_is_asked_for(source: Path, tmp_path: Path) -> None:
    weights = source / "model.safetensors"
    bare = write(tmp_path / "bare.safetensors", SimpleNamespace(state_dict=lambda: load_file(weights)))
    fields = [part for key, value in ARGS.items() for part in ("--set", f"{key}={value}")]
    asked = ["--to", "mlx", "--model", "vit_tiny_patch16_224.augreg_in21k", *fields]
    report = converted(bare, tmp_path / "own", *asked)
    assert report["architecture"]["img_size"] == SIZE and not [n for n in report["notes"] if "resized" in n]
    np.testing.assert_array_equal(on_disk(tmp_path / "own")["pos_embed"], on_disk(source)["pos_embed"])
    report = converted(bare, tmp_path / "large", *asked, "--image-size", 48)
    assert [n for n in report["notes"] if "resized" in n] == ["pos_embed: 4 x 4 resized to 6 x 6"]

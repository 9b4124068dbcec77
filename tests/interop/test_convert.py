"""The convert command: each format opened by its own library, the proof, and what is left where it fails."""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import peft
import pytest
import timm
import torch
import transformers
from by_hand import by_hand
from comparing import LOGITS, relative
from foreign_models import SIZE, SMALL, logits, on_disk, pixels, prepared, shaken
from PIL import Image
from safetensors.torch import load_file, save_file
from torchvision.models import VisionTransformer
from typer.testing import CliRunner

import torch_ref
from convert.base import Base, whole
from convert.layouts.layout import Asked
from convert.open import open_path
from convert.timm.write import write_model
from mlx_peft.artifacts import targets
from mlx_peft.artifacts.export import Exported
from mlx_peft.artifacts.load import load_model
from mlx_peft.artifacts.targets import TARGETS, Job
from mlx_peft.cli.app import app
from mlx_peft.config.files import dump, load
from mlx_peft.config.methods import LoRA
from mlx_peft.config.schema import Data, Experiment
from mlx_peft.core.errors import UserError
from mlx_peft.data.recipe import eval_image

CLASSES = ("cat", "dog", "emu")
ARGS: dict[str, Any] = {"patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 2}


def command(*arguments: object, backend: str = "torch") -> Any:
    return CliRunner().invoke(app, ["convert", *map(str, arguments)], obj=backend)


def converted(*arguments: object, backend: str = "torch") -> dict[str, Any]:
    done = command(*arguments, "--json", backend=backend)
    assert done.exit_code == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of timm's, with everything that travels set to something unusual."""
    torch.manual_seed(0)
    model = shaken(timm.create_model("vit_tiny_patch16_224", img_size=SIZE, num_classes=3, **ARGS))
    base = opened(write(tmp_path_factory.mktemp("plain") / "a.safetensors", model))
    recipe = base.preprocessing.model_copy(update={"crop_pct": SIZE / 36, "interpolation": "bilinear"})
    base = replace(base, preprocessing=recipe)
    folder = tmp_path_factory.mktemp("source") / "model"
    write_model(folder, base=base, tensors=base.tensors, classes=CLASSES)
    return folder


def write(path: Path, model: torch.nn.Module) -> Path:
    save_file(model.state_dict(), path)
    return path


def opened(path: Path) -> Base:
    asked = Asked("vit_tiny_patch16_224.augreg_in21k")
    return whole(open_path(path, asked), SIZE, ARGS)


def theirs(source: Path, images: np.ndarray) -> np.ndarray:
    """What timm computes with the source."""
    with torch.no_grad():
        return timm.create_model(f"local-dir:{source}", pretrained=True).eval()(normalised(images)).numpy()


def normalised(images: np.ndarray) -> torch.Tensor:
    return ((torch.from_numpy(images) / 255 - 0.5) / 0.5).permute(0, 3, 1, 2)


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


def test_advice_on_fields_is_given_only_for_fields(source: Path, tmp_path: Path) -> None:
    base = whole(open_path(source, Asked()))
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UserError) as refused:
        TARGETS["timm"].write(tmp_path, Job(base, base.tensors, CLASSES, "float32", None, None))
    assert "--set" not in str(refused.value)


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


def test_a_failed_proof_leaves_nothing(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch_ref.tools import foreign

    def wrong(path: Path, base: Base) -> Any:
        model = timm.create_model(f"local-dir:{source}", pretrained=True)
        with torch.no_grad():
            model.head.bias += 0.1
        return model

    monkeypatch.setitem(foreign.OPENERS, "transformers", wrong)
    failed = command(source, tmp_path / "out", "--to", "transformers")
    assert failed.exit_code == 2
    assert "the proof failed, nothing was written" in failed.stderr and "the result in transformers" in failed.stderr
    assert list(tmp_path.iterdir()) == []
    assert command(source, tmp_path / "out", "--to", "transformers", "--no-verify").exit_code == 0


def test_what_its_library_cannot_open_is_not_proved(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch_ref.tools import foreign

    def broken(path: Path, base: Base) -> Any:
        raise RuntimeError("size mismatch for head\nand more")

    monkeypatch.setitem(foreign.OPENERS, "timm folder", broken)
    failed = command(source, tmp_path / "out", "--to", "mlx")
    assert failed.exit_code == 2 and "cannot be opened there (size mismatch for head)" in failed.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_library_that_is_not_there_is_said(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    report = converted(source, tmp_path / "out", "--to", "transformers")
    assert any(row.startswith("the result in transformers: ") for row in report["proof"]["unproved"])
    assert "the source in timm folder against torch" in report["proof"]["rows"]


@pytest.mark.parametrize("to", ["onnx", "coreml"])
def test_other_runtimes_get_the_model_and_prove_it_themselves(
    to: str, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def export_model(kind: str, out: Path, **given: Any) -> Exported:
        asked.append(given)
        return Exported(kind, {out: 7}, 3e-6 if kind == "onnx" else None, "held against it", ("a note",))

    monkeypatch.setattr(targets, "export_model", export_model)
    out = tmp_path / ("m.onnx" if to == "onnx" else "m.mlpackage")
    report = converted(source, out, "--to", to)
    [given] = asked
    assert given["classes"] == CLASSES and given["verify"] is True
    assert given["tensors"].keys() == on_disk(source).keys()
    assert given["base"].name == "vit_tiny_patch16_224.augreg_in21k"
    assert report["files"] == {str(out): 7} and "a note" in report["notes"]
    expected = {f"{to}: held against it": 3e-6} if to == "onnx" else {}
    assert report["proof"]["exported"] == expected
    assert ("held against it" in report["proof"]["unproved"]) is (to == "coreml")


def test_what_is_said_to_a_person(source: Path, tmp_path: Path) -> None:
    done = command(source, tmp_path / "out", "--to", "mlx")
    lines = done.stdout.splitlines()
    assert lines[0] == f"{source}: timm, as vit_tiny_patch16_224.augreg_in21k, 32 px"
    assert any("model.safetensors  " in line for line in lines)
    assert lines[-1].startswith("proved on noise images: largest relative difference ")
    again = command(source, tmp_path / "out", "--to", "mlx")
    assert again.exit_code == 2 and "is already there" in again.stderr
    unknown = command(source, tmp_path / "new", "--to", "transformer")
    assert unknown.exit_code == 2 and "did you mean 'transformers'" in unknown.stderr


def test_a_name_without_its_suffix_is_refused_before_the_source_is_opened(tmp_path: Path) -> None:
    assert "such as 'out.onnx'" in command("missing.pth", tmp_path / "out", "--to", "onnx").stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--to", "timm", "--bits", "4"], "only the format mlx holds quantised weights, not timm"),
        (["--to", "mlx", "--bits", "7"], "bits should be one of 8, 6, 5, 4, 3, 2, not 7"),
        (["--to", "onnx"], "such as 'out.onnx'"),
        (["--to", "coreml"], "such as 'out.mlpackage'"),
        (["--to", "onnx", "--dtype", "float16"], "the format onnx has float32, not float16"),
        (["--to", "mlx", "--weights", "here"], "an adapter's name or its weights were given, and .* is no adapter"),
        (["--to", "mlx", "--set", "dept=2"], "args.dept: no such field of a ViT; did you mean 'depth'"),
        (["--to", "mlx", "--model", "vit_base_patch16_224"], "but .* is of a 'vit_tiny_patch16_224'"),
    ],
)
def test_what_cannot_be_done_is_said_before_it_is_tried(
    arguments: list[str], message: str, source: Path, tmp_path: Path
) -> None:
    refused = command(source, tmp_path / "out", *arguments)
    assert refused.exit_code == 2 and re.search(message, refused.stderr), refused.stderr
    assert list(tmp_path.iterdir()) == []

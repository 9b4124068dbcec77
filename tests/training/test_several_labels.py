"""ChestMNIST from its archive to all that a run becomes: trained, measured, told and converted as several labels."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import transformers
from by_hand import by_hand
from PIL import Image
from sklearn.metrics import roc_auc_score

from convert.adapters.peft import WEIGHTS, read_adapter
from convert.files import read_safetensors
from convert.problem import KEY
from mlx_peft.artifacts.convert import convert
from mlx_peft.artifacts.examine import evaluate_run
from mlx_peft.artifacts.inspect import inspect
from mlx_peft.artifacts.load import load_model, load_run
from mlx_peft.artifacts.merge import merge_run
from mlx_peft.artifacts.predict import predict
from mlx_peft.artifacts.simulate import simulate_run
from mlx_peft.config.schema import Experiment
from mlx_peft.config.simulation import Simulation
from mlx_peft.core.errors import UserError
from mlx_peft.data import REGISTRY, open_dataset
from mlx_peft.report import card, simulation
from mlx_peft.tasks.multi_label import MULTI_LABEL
from mlx_peft.training.run import read_metrics
from mlx_peft.training.train import train

SIZES = {"train": 40, "val": 24, "test": 24}
NAME = "medmnist:chestmnist"
ROUNDING = 1e-4
"""Of metrics and probabilities: the same float32 weights, merged or in another library."""
MODEL = {
    "name": "vit_tiny_patch16_224",
    "weights": "none",
    "image_size": 28,
    "args": {"patch_size": 14, "embed_dim": 24, "depth": 1, "num_heads": 3},
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The archive as it is published, of few images: a finding lights up its own place."""
    rng, arrays = np.random.default_rng(0), {}
    for split, size in SIZES.items():
        labels = rng.integers(0, 2, (size, 14), np.uint8)
        pixels = rng.integers(0, 60, (size, 28, 28), np.uint8)
        pixels[:, ::2, ::2] += (160 * labels)[:, np.arange(14) % 14, None].astype(np.uint8)
        arrays |= {f"{split}_images": pixels, f"{split}_labels": labels}
    folder = tmp_path_factory.mktemp("medmnist")
    np.savez_compressed(folder / "chestmnist.npz", **arrays)
    return folder


@pytest.fixture(scope="module", autouse=True)
def small() -> Iterator[None]:
    """The set states the sizes of the archive above."""
    with pytest.MonkeyPatch.context() as patch:
        entry = REGISTRY[NAME]
        patch.setitem(REGISTRY, NAME, replace(entry, variants=(replace(entry.variants[0], sizes=SIZES),)))
        yield


def experiment(root: Path, backend: str = "torch", **data: Any) -> Experiment:
    return Experiment.model_validate({
        "backend": backend,
        "model": MODEL,
        "method": {"name": "lora", "rank": 2},
        "data": {"name": NAME, "root": root, "batch_size": 16, "threads": 1} | data,
        "train": {"epochs": 2, "optimizer": {"name": "adamw", "lr": 0.01}},
    })  # fmt: skip


@pytest.fixture(scope="module", params=["mlx", "torch"])
def run(request: pytest.FixtureRequest, root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp(request.param) / "run"
    train(experiment(root, request.param), out)
    return out


@pytest.fixture(scope="module")
def model(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("merged") / "model"
    merge_run(run, out)
    return out


def test_a_run_is_selected_by_auroc_and_says_what_it_measured(run: Path) -> None:
    result = json.loads((run / "result.json").read_text())
    assert result["selected"]["by"] == "val.auroc"
    assert {"auroc", "accuracy", "map", "f1", "loss", "count"} <= result["metrics"]["test"].keys()
    assert "top1" not in result["metrics"]["test"]
    details = result["details"]["test"]
    assert details["confusion"] is None
    assert len(details["per_class"]["auroc"]) == 14
    aurocs = [record["val_auroc"] for record in read_metrics(run / "metrics.jsonl") if "val_auroc" in record]
    assert result["metrics"]["val"]["auroc"] == max(aurocs)


def test_the_backends_train_alike(root: Path, tmp_path: Path) -> None:
    config = {"augment": {"mixup": 0.8, "flip": True}, "class_weights": "balanced"}
    results = [train(experiment(root, backend, **config), tmp_path / backend) for backend in ("mlx", "torch")]
    losses = [
        [
            record["train_loss"]
            for record in read_metrics(tmp_path / backend / "metrics.jsonl")
            if "train_loss" in record
        ]
        for backend in ("mlx", "torch")
    ]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)  # float32 over six steps
    np.testing.assert_allclose(*(result["metrics"]["test"]["loss"] for result in results), rtol=1e-3)
    assert results[0]["splits"] == results[1]["splits"]


def test_evaluation_agrees_with_scikit_learn_and_with_the_run(run: Path, root: Path) -> None:
    found = evaluate_run(run)
    assert found == pytest.approx(json.loads((run / "result.json").read_text())["metrics"]["test"], rel=1e-6)
    test = open_dataset(experiment(root).data).test
    assert test is not None
    images = np.stack([test.images.read(row) for row in range(test.size)])
    logits = load_run(run).model.logits(images)
    assert found["auroc"] == pytest.approx(roc_auc_score(test.labels, logits), rel=1e-9)


def test_an_adapter_says_its_problem_and_prediction_gives_each_class_its_own_probability(
    run: Path, root: Path, tmp_path: Path
) -> None:
    assert read_adapter(run / "adapter").task == MULTI_LABEL
    assert json.loads(read_safetensors(run / "adapter" / WEIGHTS)[1]["mlx_peft"])[KEY] == MULTI_LABEL.name
    assert inspect(run)[KEY] == MULTI_LABEL.name
    Image.fromarray(np.full((28, 28, 3), 99, np.uint8)).save(tmp_path / "a.png")
    loaded = load_run(run)
    ((found),) = predict(loaded, [tmp_path / "a.png"], top_k=14)
    told = {guess["class"]: guess["probability"] for guess in found["predictions"]}
    logits = torch.from_numpy(loaded.model.logits(np.full((1, 28, 28, 3), 99, np.uint8)))[0]
    expected = dict(zip(loaded.classes, torch.sigmoid(logits).tolist(), strict=True))
    assert told == pytest.approx(expected, rel=1e-5)
    assert list(told.values()) == sorted(told.values(), reverse=True)


def test_a_merged_model_keeps_its_problem_and_timm_opens_it(run: Path, model: Path) -> None:
    assert json.loads((model / "config.json").read_text())[KEY] == MULTI_LABEL.name
    assert inspect(model)[KEY] == MULTI_LABEL.name
    assert load_model(model, "torch").task == MULTI_LABEL
    assert evaluate_run(run, model=model) == pytest.approx(evaluate_run(run), rel=ROUNDING)
    images = np.random.default_rng(0).integers(0, 256, (2, 28, 28, 3), np.uint8)
    theirs = timm.create_model(f"local-dir:{model}", pretrained=True).eval()
    pixels = (torch.from_numpy(images).float() / 255 - 0.5) / 0.5
    ours = load_model(model, "torch").model.logits(images)
    with torch.inference_mode():
        np.testing.assert_allclose(theirs(pixels.permute(0, 3, 1, 2)).numpy(), ours, atol=ROUNDING)


def test_transformers_reads_the_problem_and_gives_it_back(run: Path, model: Path, tmp_path: Path) -> None:
    convert(str(model), tmp_path / "theirs", "transformers", backend="torch")
    theirs = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "theirs").eval()
    assert theirs.config.problem_type == MULTI_LABEL.name
    pixels, labels = torch.randn(2, 3, 28, 28), torch.randint(0, 2, (2, 14)).float()
    answer = theirs(pixels, labels=labels)
    torch.testing.assert_close(answer.loss, torch.nn.BCEWithLogitsLoss()(answer.logits, labels))
    theirs.save_pretrained(tmp_path / "again")
    by_hand(
        tmp_path / "again" / "preprocessor_config.json", (tmp_path / "theirs" / "preprocessor_config.json").read_bytes()
    )
    convert(str(tmp_path / "again"), tmp_path / "ours", "timm", backend="torch")
    assert json.loads((tmp_path / "ours" / "config.json").read_text())[KEY] == MULTI_LABEL.name
    assert evaluate_run(run, model=tmp_path / "ours") == pytest.approx(evaluate_run(run), rel=ROUNDING)
    note = convert(str(run), tmp_path / "tv", "torchvision", backend="torch").notes[-1]
    assert "the sigmoid of each logit is the probability of its class" in note
    convert(str(run), tmp_path / "peft", "peft", backend="torch")
    assert read_adapter(tmp_path / "peft").task == MULTI_LABEL


def test_a_model_of_another_problem_is_refused_and_so_is_no_classification(run: Path, model: Path) -> None:
    config = model / "config.json"
    before = config.read_text()
    try:
        by_hand(config, json.dumps({k: v for k, v in json.loads(before).items() if k != KEY}))
        with pytest.raises(
            UserError, match=r"may have several classes or none, and to .*/model an image has one class"
        ):
            evaluate_run(run, model=model)
        by_hand(config, json.dumps(json.loads(before) | {KEY: "regression"}))
        with pytest.raises(UserError, match=r"config\.json: problem_type: 'regression' is not supported"):
            load_model(model)
    finally:
        by_hand(config, before)


def test_a_simulated_quantisation_is_measured_alike(run: Path) -> None:
    report = simulate_run(run, [Simulation(weights=8, activations=32)])
    (one,) = report.after
    assert 0.5 < one.agreement <= 1
    text = "\n".join(simulation.lines(report))
    assert "test AUROC (%)" in text and "same answers (%)" in text


def test_a_card_tells_its_auroc(run: Path) -> None:
    from mlx_peft.artifacts.share import packed

    with packed(run) as parcel:
        text = card.card(parcel, "someone/chest", "mlx-peft predict model/ image.jpg")
    assert "AUROC" in text and "roc_auc" in text and "top-1" not in text
    assert "may have several" in text


def test_sampling_by_class_is_refused_before_anything_is_made(root: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.sampling: class draws images by their class"):
        train(experiment(root, sampling="class"), tmp_path / "run")
    assert not (tmp_path / "run").exists()

"""A task that the project does not know is one module: registered, it is trained, measured, told and converted."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import torch
from PIL import Image
from regression import CLOSE, REGRESSION, squared_error

from mlx_peft.artifacts.examine import evaluate_run
from mlx_peft.artifacts.export import export_model
from mlx_peft.artifacts.inspect import inspect
from mlx_peft.artifacts.load import load_model, load_run
from mlx_peft.artifacts.merge import merge_run
from mlx_peft.artifacts.predict import predict
from mlx_peft.artifacts.share import packed
from mlx_peft.artifacts.simulate import simulate_run
from mlx_peft.config.schema import Data, Experiment
from mlx_peft.config.simulation import Simulation
from mlx_peft.core.errors import UserError
from mlx_peft.data import REGISTRY, ArrayImages, Split, open_dataset
from mlx_peft.data.check import survey
from mlx_peft.data.entry import Entry, Found, Variant
from mlx_peft.data.looking import Watch
from mlx_peft.data.sheet import contact_sheet
from mlx_peft.report import card, evaluation, simulation
from mlx_peft.report.files import write
from mlx_peft.report.gather import gathered
from mlx_peft.report.study import examined
from mlx_peft.report.summary import metrics_line
from mlx_peft.tasks.registry import TASKS
from mlx_peft.training.preview import preview
from mlx_peft.training.train import train

ROUNDING = 1e-4  # of metrics: the same float32 weights, merged or on the other backend
NAME, VALUES = "brightness", ("brightness",)


def brightness(config: Data, variant: Variant, watch: Watch) -> Found:
    """Images of one noisy grey each, and how bright they are."""
    rng = np.random.default_rng(0)
    values = rng.uniform(-1, 1, (120, 1)).astype(np.float32)
    grey = 128 + 90 * values[:, :, None, None] + rng.normal(0, 10, (120, 16, 16, 3))
    images = ArrayImages.whole(grey.clip(0, 255).astype(np.uint8), NAME)
    return Found(VALUES, {"train": Split("train", images, values, task=REGRESSION)})


@pytest.fixture(scope="module", autouse=True)
def registered() -> Iterator[None]:
    """The task and its losses, and a data set of it."""
    from mlx_peft.backend import losses as ours
    from torch_ref import losses as theirs

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(TASKS, REGRESSION.name, REGRESSION)
        for losses in (ours, theirs):
            patch.setitem(losses.LOSSES, REGRESSION.name, squared_error)
        patch.setitem(REGISTRY, NAME, Entry(brightness, "greys", "", "", 1, VALUES, task=REGRESSION))
        yield


def experiment(backend: str = "torch", **data: Any) -> Experiment:
    return Experiment.model_validate({
        "backend": backend,
        "model": {
            "name": "vit_tiny_patch16_224",
            "weights": "none",
            "image_size": 16,
            "args": {"patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 3},
        },
        "method": {"name": "lora", "rank": 2},
        "data": {"name": NAME, "batch_size": 16, "threads": 1, "split": {"val": 0.2, "test": 0.2}} | data,
        "train": {"epochs": 6, "optimizer": {"name": "adamw", "lr": 0.02}, "accumulate": 2},
    })  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on each backend, by its name."""
    folder = tmp_path_factory.mktemp("runs")
    for backend in ("mlx", "torch"):
        train(experiment(backend), folder / backend)
    return folder


def test_it_is_learnt_and_selected_by_its_own_metric(runs: Path) -> None:
    for backend in ("mlx", "torch"):
        result = json.loads((runs / backend / "result.json").read_text())
        assert result["selected"]["by"] == "val.close"
        found = result["metrics"]["test"]
        assert set(found) == {"loss", "count", "close"}
        assert found["loss"] < 0.1, "a third of it is the values' own variance"
        assert evaluate_run(runs / backend) == pytest.approx(found, rel=ROUNDING)


def test_the_backends_learn_the_same(runs: Path) -> None:
    first, second = (json.loads((runs / name / "result.json").read_text()) for name in ("mlx", "torch"))
    assert first["splits"] == second["splits"]
    assert first["metrics"]["test"]["loss"] == pytest.approx(second["metrics"]["test"]["loss"], rel=1e-2)


def test_its_files_say_what_it_is_and_a_person_is_answered_with_values(runs: Path, tmp_path: Path) -> None:
    assert inspect(runs / "torch")["problem_type"] == "regression"
    loaded = load_run(runs / "torch")
    assert loaded.task == REGRESSION
    Image.fromarray(np.full((16, 16, 3), 128, np.uint8)).save(tmp_path / "grey.png")
    ((found),) = predict(loaded, [tmp_path / "grey.png"])
    (answer,) = found["predictions"]
    assert (answer["name"], abs(answer["value"]) < CLOSE) == ("brightness", True)
    assert loaded.task.line(answer).startswith("brightness ")
    merge_run(runs / "torch", tmp_path / "model")
    assert load_model(tmp_path / "model", "torch").task == REGRESSION
    again = evaluate_run(runs / "torch", model=tmp_path / "model")
    assert again == pytest.approx(evaluate_run(runs / "torch"), rel=ROUNDING)


def test_reports_and_pictures_have_its_metric(runs: Path, tmp_path: Path) -> None:
    found = gathered(runs)
    assert not found.damaged
    write(found, examined(found), tmp_path)
    assert "test close (%)" in (tmp_path / "table.md").read_text()
    result = json.loads((runs / "torch" / "result.json").read_text())
    assert "close" in metrics_line("test", result["metrics"]["test"])
    folder = evaluation.write_result(runs / "torch", result)
    assert folder is not None and [path.name for path in folder.iterdir()] == ["test.json"]
    with packed(runs / "torch") as parcel:
        text = card.card(parcel, "someone/grey", "mlx-peft predict model/ image.jpg")
    assert "a head of 1 values" in text and "close (%)" in text and "image-feature-extraction" in text
    (one,) = (report := simulate_run(runs / "torch", [Simulation(weights=8, activations=32)])).after
    assert one.agreement > 0.5
    assert "same values (%)" in "\n".join(simulation.lines(report))


def test_a_data_set_of_it_is_looked_through_mixed_and_shown() -> None:
    dataset = open_dataset(experiment().data)
    assert {name: split.size for name, split in dataset.splits.items()} == {"train": 72, "val": 24, "test": 24}
    found = survey(dataset, 1)
    assert found.report()["splits"]["train"]["by_class"] == {"brightness": 72}
    assert contact_sheet(found).height > 0
    shown = preview(experiment(augment={"mixup": 1.0}), 4)
    assert all(-1 <= value <= 1 for image in shown for value in image.classes.values())
    with pytest.raises(UserError, match="an image of brightness has a value, no class"):
        open_dataset(experiment(class_weights="balanced").data)


def test_a_format_without_words_for_it_refuses_it(runs: Path, tmp_path: Path) -> None:
    loaded = load_run(runs / "torch")
    tensors = loaded.model.merged()
    with pytest.raises(UserError, match="the model's task is regression"):
        export_model("coreml", tmp_path / "m.mlpackage", base=loaded.base, tensors=tensors, classes=loaded.classes)


def test_its_loss_is_the_one_of_the_framework() -> None:
    rng = np.random.default_rng(0)
    logits, values = rng.normal(size=(2, 4, 3)).astype(np.float32)
    targets = REGRESSION.targets(values[:3], 4, None, 0.0)
    count = REGRESSION.total_weight(targets)
    expected = float(torch.nn.functional.mse_loss(torch.from_numpy(logits[:3]), torch.from_numpy(values[:3])))
    ours = squared_error(mx.array(logits), mx.array(targets), mx.array(count), 0.0)
    theirs = squared_error(torch.from_numpy(logits), torch.from_numpy(targets), count, 0.0)
    assert [float(ours), float(theirs)] == pytest.approx([expected] * 2, rel=1e-6)  # float32, a dozen terms

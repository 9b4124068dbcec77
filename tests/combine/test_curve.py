"""The curve between a base and an adapter: its ends, what is between them, and what it is measured on."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch  # noqa: F401  before MLX: see mlx_peft.backend.blas
from PIL import Image
from typer.testing import CliRunner

import torch_ref as mp
from mlx_peft.artifacts.combine import Wish
from mlx_peft.artifacts.examine import evaluate_run
from mlx_peft.artifacts.interpolate import interpolate
from mlx_peft.artifacts.load import load_run
from mlx_peft.cli.app import app
from mlx_peft.config.schema import Experiment
from mlx_peft.core.errors import UserError
from mlx_peft.data import eval_batches, open_dataset
from mlx_peft.report import interpolation
from mlx_peft.training.evaluate import evaluate
from mlx_peft.training.run import RunFolder
from mlx_peft.training.train import train

SAME = 1e-5
"""Of a loss around 1: the same sums in another order."""

MODEL = {
    "name": "vit_tiny_patch16_224", "weights": "none", "image_size": 16,
    "args": {"patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2},
}  # fmt: skip

METHODS: dict[str, dict[str, Any]] = {
    "lora": {"name": "lora", "rank": 2},
    "dora": {"name": "lora", "rank": 2, "dora": True},
    "ssf": {"name": "ssf"},
    "ia3": {"name": "ia3"},
    "full": {"name": "full"},
}
"""``dora`` has a curve, though it cannot be combined: its weights can be merged."""


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, random = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for number in range(36):
        name = ("dark", "light", "stripes")[number % 3]
        pixels = random.integers(0, 90, (16, 16, 3)) + (0, 120, 60)[number % 3]
        pixels[:: 2 if name == "stripes" else 1] += 40
        file = folder / ("train", "val", "test")[number // 12] / name / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(file)
    return folder


@pytest.fixture(scope="module")
def run(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """``run(method)`` is a finished run, trained once."""
    place = tmp_path_factory.mktemp("runs")

    def trained(name: str, lr: float = 0.05) -> Path:
        out = place / f"{name}-{lr}"
        if not out.exists():
            experiment = Experiment.model_validate({
                "backend": "torch", "model": MODEL, "method": METHODS.get(name, {"name": name}),
                "data": {"name": "folder", "root": str(photos), "batch_size": 6, "threads": 1},
                "train": {"epochs": 1, "optimizer": {"name": "adamw", "lr": lr}},
            })  # fmt: skip
            train(experiment, out)
        return out

    return trained


@pytest.mark.parametrize("method", METHODS)
def test_it_begins_at_the_base_and_ends_at_the_adapter(run, method, tmp_path):
    path = run(method)
    found = interpolate([path], [0, 0.5, 1])
    assert (found.split, found.images) == ("val", 12)
    losses = [metrics["loss"] for _, metrics in found.points]
    assert losses[2] == pytest.approx(evaluate_run(path, "val")["loss"], abs=SAME)
    assert abs(losses[0] - losses[2]) > 100 * SAME
    if method != "dora":
        mp.combine({path: 0.5}, tmp_path / "half")
        assert losses[1] == pytest.approx(loss_of(path, tmp_path / "half"), abs=SAME)
        mp.combine({path: 0}, tmp_path / "none")
        assert losses[0] == pytest.approx(loss_of(path, tmp_path / "none"), abs=SAME)


def loss_of(run: Path, adapter: Path) -> float:
    """On the images of a run's validation split, of an adapter that lies elsewhere."""
    data = RunFolder(run).read_config().data
    loaded = load_run(adapter, "torch")
    batches = eval_batches(open_dataset(data).splits["val"], data, loaded.preprocessing, loaded.image_size)
    return evaluate(loaded.model, batches, loaded.task, 3)["loss"]


def test_both_backends_measure_the_same(run):
    ours, theirs = (interpolate([run("lora")], [0.25, 0.75], backend=side) for side in ("mlx", "torch"))
    for (_, one), (_, other) in zip(ours.points, theirs.points, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], abs=SAME)


def test_several_adapters_are_combined_first(run, tmp_path):
    given = {run("lora"): 0.6, run("lora", 0.1): 0.4}
    found = interpolate(given, [1], Wish(head="mean"))
    mp.combine(given, tmp_path / "both", head="mean")
    assert found.points[0][1]["loss"] == pytest.approx(loss_of(run("lora"), tmp_path / "both"), abs=SAME)
    assert found.of == "0.6 x lora-0.05 + 0.4 x lora-0.1" and found.origin.head == "mean"


def test_an_alpha_is_chosen_by_validation_images_and_never_by_those_of_the_test(run):
    chosen = interpolate([run("lora")], [0, 1])
    measured = interpolate([run("lora")], [0, 1], split="test")
    assert chosen.best in (0.0, 1.0) and measured.best is None
    assert any("an alpha that is chosen by it is measured by nothing" in note for note in measured.notes)
    assert "the best here" not in "\n".join(interpolation.lines(measured))


@pytest.mark.parametrize(
    ("method", "alphas", "message"),
    [
        ("adaptformer", [0, 1], "method adaptformer cannot be merged: there is a ReLU"),
        ("lora", [], "there should be 1 to 1,000 finite numbers"),
        ("lora", [0, float("nan")], "there should be 1 to 1,000 finite numbers"),
    ],
)
def test_what_has_no_curve_is_refused(run, method, alphas, message):
    with pytest.raises(UserError, match=message):
        interpolate([run(method)], alphas)


def test_an_adapter_alone_knows_no_images(run):
    with pytest.raises(UserError, match="is no run, and only a run knows its images"):
        interpolate([run("lora") / "adapter"], [0, 1])


@pytest.mark.usefixtures("fine_pictures")
def test_the_command_prints_a_table_and_writes_a_spreadsheet_and_a_picture(run, tmp_path, monkeypatch):
    def command(*arguments: object) -> Any:
        return CliRunner().invoke(app, list(map(str, arguments)), obj="torch", prog_name="torch-ref")

    out = tmp_path / "curve"
    done = command("combine", run("lora"), "--curve", "0:1:0.25", "--out", out)
    assert done.exit_code == 0, done.stderr
    assert "| alpha | val top-1 (%) |" in done.stdout and "the best here: alpha" in done.stdout
    rows = list(csv.DictReader((out / "curve.csv").open()))
    assert [float(row["alpha"]) for row in rows] == [0, 0.25, 0.5, 0.75, 1]
    with Image.open(out / "curve.png") as picture:
        assert min(picture.size) > 400
    moved = command("combine", run("lora"), f"data.root={tmp_path.parent}", "--curve", "1", "--json")
    assert moved.exit_code == 2  # no images there
    document = json.loads(command("combine", run("lora"), "--curve", "0,1", "--split", "test", "--json").stdout)
    assert [point["alpha"] for point in document["points"]] == [0, 1] and document["best"] is None
    for arguments, message in (
        (["--curve", "a:b:c"], "--curve should be like 0:1:0.1"),
        (["--curve", "0:1:0"], "--curve should be like 0:1:0.1"),
        (["--split", "val", "--out", "x"], "--split is for --curve"),
        ([], "say which folder to write"),
    ):
        wrong = command("combine", run("lora"), *arguments)
        assert wrong.exit_code == 2 and message in wrong.stderr

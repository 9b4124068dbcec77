"""``mlx-peft simulate``: a finished run, from its training images to the table before and after."""

import hashlib
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch  # noqa: F401  before MLX: see mlx_peft.backend.blas
from by_hand import by_hand
from typer.testing import CliRunner

from mlx_peft.artifacts import simulate
from mlx_peft.artifacts.examine import evaluate_run
from mlx_peft.artifacts.load import load_run
from mlx_peft.artifacts.simulate import simulate_run
from mlx_peft.cli.app import app
from mlx_peft.config.schema import Experiment
from mlx_peft.config.simulation import Simulation, points
from mlx_peft.data import open_dataset
from mlx_peft.training.run import RunFolder
from mlx_peft.training.train import train

W8A8 = 0.1
"""Relative change of logits: each of some twenty roundings in sequence adds noise of about 1 % (40 dB)."""

SPLIT = {"val": 0.84, "test": 0.08}
"""Few images to train and to be tested on, since they are looked at again and again."""


def command(*arguments):
    return CliRunner().invoke(app, list(map(str, arguments)), obj="torch")


def trained(out, method, **changes):
    args = {"patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 2}
    experiment = Experiment.model_validate(
        {
            "backend": "torch",
            "model": {"name": "vit_tiny_patch16_224", "weights": "none", "image_size": 32, "args": args},
            "method": method,
            "data": {"name": "digits", "split": SPLIT},
            "train": {"epochs": 1},
            **changes,
        }
    )
    train(experiment, out)
    return out


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of one epoch on handwritten digits."""
    return trained(tmp_path_factory.mktemp("runs") / "run", {"name": "full"})


@pytest.fixture(scope="module")
def report(run):
    """Two settings under two calibrations."""
    settings = [(w, a, c) for w, a in ((8, 8), (3, 3)) for c in ("minmax", "repq")]
    return simulate_run(run, [Simulation(weights=w, activations=a, calibration=c) for w, a, c in settings])


def test_before_is_what_eval_says_and_fewer_bits_cost_more(run, report):
    assert report.before == evaluate_run(run)
    eight, _, three, _ = report.after
    assert [one.simulation.name for one in report.after] == ["W8A8", "W8A8", "W3A3", "W3A3"]
    assert eight.logits < W8A8 and eight.agreement > 0.95
    assert three.logits > 3 * eight.logits and three.metrics["count"] == report.before["count"]


def test_every_layer_and_operand_has_its_error(run, report):
    names = points(load_run(run).base.architecture)
    layers = [name for name in names if name.endswith(("qkv", "proj", "fc1", "fc2"))]
    for one in report.after:
        assert list(one.activations) == names and list(one.weights) == layers
        assert all(np.isfinite(list(one.activations.values()))) and all(np.isfinite(list(one.weights.values())))
    eight, _, three, _ = report.after
    assert all(eight.weights[layer] > three.weights[layer] + 20 for layer in layers)  # 6 dB a bit


def test_it_is_calibrated_on_training_images_alone_and_says_on_which(run, report, monkeypatch):
    dataset = open_dataset(RunFolder(run).read_config().data)
    rows = np.sort(np.random.default_rng(0).choice(dataset.train.size, 32, replace=False))
    digest = hashlib.sha256()
    for row in rows:
        digest.update(f"{dataset.train.images.identifiers[row]}\0{dataset.train.labels[row]}\n".encode())
    assert {one.images for one in report.after} == {simulate.Images(32, 0, digest.hexdigest())}

    recorded = []
    original = simulate.eval_batches

    def watched(split, *arguments):
        recorded.append(split.name)
        return original(split, *arguments)

    monkeypatch.setattr(simulate, "eval_batches", watched)
    simulate_run(run, [Simulation()], "val")
    assert recorded == [dataset.val.name, "calibration", "calibration", dataset.val.name]


def test_it_comes_out_the_same_again_and_another_seed_takes_other_images(run, report):
    again, other, few = simulate_run(run, [Simulation(), Simulation(seed=1), Simulation(images=2)]).after
    first = report.after[1]
    np.testing.assert_array_equal(again.said.logits, first.said.logits)
    assert replace(again, said=first.said) == first
    assert other.images.sha256 != again.images.sha256 and few.images.count == 2
    every = simulate_run(run, [Simulation(images=10**6, calibration="minmax")]).after[0].images
    assert every.count == open_dataset(RunFolder(run).read_config().data).train.size


def test_weights_alone_need_no_calibration(run):
    alone, none = simulate_run(
        run, [Simulation(weights=4, activations=32), Simulation(weights=32, activations=32)]
    ).after
    assert alone.images is None and not alone.activations and alone.logits > 0
    assert none.logits < 1e-6 and none.agreement == 1 and not none.weights


def test_the_table_says_simulated_in_every_row(run):
    done = command("simulate", run, "w8a8", "w4a8", "--calibration", "minmax", "--calibration", "percentile")
    assert done.exit_code == 0, done.stderr
    rows = [line for line in done.stdout.splitlines() if line.startswith("| W")]
    assert len(rows) == 4 and all("simulated" in row for row in rows)
    assert "| float32 " in done.stdout and "Calibrated on 32 training images, seed 0 (sha256 " in done.stdout
    titles = [line for line in done.stdout.splitlines() if "SQNR" in line]
    assert len(titles) == 8 and all("(simulated)" in title for title in titles)


def test_json_has_what_the_table_shows(run, report):
    done = command("simulate", run, "w8a8", "--calibration", "minmax", "--backend", "torch", "--json")
    document = json.loads(done.stdout)
    (after,) = document["after"]
    assert document["simulated"] is True and document["before"] == report.before
    assert after["metrics"] == report.after[0].metrics and after["sqnr"]["weights"] == report.after[0].weights
    assert after["simulation"] == {
        "weights": 8, "activations": 8, "calibration": "minmax", "percentile": 99.99, "softmax": "uniform",
        "images": 32, "seed": 0,
    }  # fmt: skip


def test_mlx_measures_what_torch_does(run, report):
    ours = simulate_run(run, [Simulation(calibration="minmax")], backend="mlx")
    assert ours.backend == "mlx" and ours.before["loss"] == pytest.approx(report.before["loss"], rel=1e-5)
    assert ours.after[0].images == report.after[0].images
    assert ours.after[0].metrics["loss"] == pytest.approx(report.after[0].metrics["loss"], rel=0.01)
    assert ours.after[0].activations == pytest.approx(report.after[0].activations, abs=0.2)


@pytest.mark.parametrize(
    "few",
    [
        pytest.param({"quantize": {"bits": 4, "group_size": 32}}, id="base", marks=pytest.mark.slow),
        pytest.param({"qat": {"bits": 4, "group_size": 32}}, id="qat"),
    ],
)
def test_codes_are_merged_into_the_weights_that_they_stand_for(tmp_path, few):
    out = trained(tmp_path / "few", {"name": "lora"}, **few)
    (one,) = simulate_run(out, [Simulation(weights=32, activations=32)]).after
    assert one.logits < 1e-5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["w8"], "'w8' is no setting: write the bits of weights and of activations, as in w8a8"),
        (["w7a8"], "'w7a8' is no setting"),
        (["w8a8", "W8A8"], "named twice"),
        (
            ["--calibration", "entropy"],
            "calibration should be one of minmax, percentile, repq, not 'entropy' (--cal",
        ),
        (
            ["--softmax", "log2"],
            "softmax should be one of uniform, log_sqrt2, best, not 'log2' (--softmax",
        ),
        (["--percentile", "40"], "the percentile should be above 50 and at most 100, not 40 (--percentile P)"),
        (["--images", "0"], "the images should be 1 or more, not 0"),
    ],
)
def test_what_is_not_understood_is_named(run, arguments, message):
    done = command("simulate", run, *arguments)
    assert done.exit_code == 2 and message in done.stderr and "Traceback" not in done.stderr


def test_refusals_say_why(run, tmp_path):
    done = command("simulate", tmp_path)
    assert done.exit_code == 2 and "is not a run" in done.stderr
    done = command("simulate", trained(tmp_path / "vpt", {"name": "vpt"}))
    assert done.exit_code == 2 and "method vpt cannot be merged" in done.stderr and "simulated" in done.stderr
    whole = trained(tmp_path / "whole", {"name": "linear"}, data={"name": "digits", "split": {"val": 0.9}})
    done = command("simulate", whole)
    assert done.exit_code == 2 and "has no test split in this run" in done.stderr
    shutil.copytree(run, tmp_path / "other")
    result = json.loads((run / "result.json").read_text())
    result["splits"]["train"]["sha256"] = "0" * 64
    by_hand(tmp_path / "other" / "result.json", json.dumps(result))
    done = command("simulate", tmp_path / "other")
    assert done.exit_code == 2 and "the train split of digits is not the one of the run" in done.stderr

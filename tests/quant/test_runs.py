"""A run beside a quantised base, from its training to what is made of it."""

import json
import shutil

import numpy as np
import pytest
import torch  # noqa: F401  before MLX: see mlx_peft.backend.blas
from comparing import relative
from typer.testing import CliRunner

from mlx_peft.artifacts.load import load_model, load_run
from mlx_peft.cli.app import app
from mlx_peft.config.files import load
from mlx_peft.config.quantization import QAT
from mlx_peft.config.schema import Experiment
from mlx_peft.training.run import RunFolder
from mlx_peft.training.train import train

ROUNDING = 1e-5


def command(*arguments):
    return CliRunner().invoke(app, list(map(str, arguments)), obj="torch")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of one epoch on handwritten digits."""
    args = {"patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 2}
    experiment = Experiment.model_validate(
        {
            "backend": "torch",
            "model": {"name": "vit_tiny_patch16_224", "weights": "none", "image_size": 32, "args": args},
            "method": {"name": "lora", "targets": "all-linear"},
            "quantize": {"bits": 4, "group_size": 32},
            "data": {"name": "digits", "split": {"test": 0.2}},
            "train": {"epochs": 1},
        }
    )
    out = tmp_path_factory.mktemp("runs") / "run"
    train(experiment, out)
    return out


@pytest.fixture
def batch():
    return np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)


def test_either_backend_opens_what_the_other_trained(run, batch):
    a, b = (load_run(run, name).model.logits(batch) for name in ("mlx", "torch"))
    assert relative(a, b) <= ROUNDING


def test_an_adapter_alone_knows_how_its_base_was_quantised(run, batch, tmp_path):
    alone = load_run((run / "adapter").rename(tmp_path / "alone"), "torch")
    (tmp_path / "alone").rename(run / "adapter")
    assert np.array_equal(alone.model.logits(batch), load_run(run).model.logits(batch))


def test_merging_is_refused_unless_told_what_becomes_of_the_codes(run, tmp_path):
    refused = command("merge", run, tmp_path / "m")
    assert refused.exit_code == 2 and "dequantize" in refused.stderr and "requantize" in refused.stderr
    assert not (tmp_path / "m").exists()
    assert command("merge", run, tmp_path / "m", "--dequantize", "--requantize").exit_code == 2
    assert command("quantize", run, tmp_path / "m").exit_code == 2


def test_dequantised_it_is_a_plain_model_with_the_same_logits(run, batch, tmp_path):
    done = command("merge", run, tmp_path / "m", "--dequantize")
    assert done.exit_code == 0 and "timm.create_model" in done.stdout
    merged, trained = load_model(tmp_path / "m", "torch"), load_run(run).model.logits(batch)
    assert merged.base.quantization is None
    assert relative(merged.model.logits(batch), trained) <= ROUNDING
    wrong = command("quantize", tmp_path / "m", tmp_path / "q", "--group-size", 128)
    assert wrong.exit_code == 2 and "does not divide" in wrong.stderr and not (tmp_path / "q").exists()


def test_requantised_it_says_how_far_the_logits_moved(run, batch, tmp_path):
    done = command("merge", run, tmp_path / "m", "--requantize")
    assert done.exit_code == 0, done.stderr
    assert "quantised to 4 bits in groups of 32; on noise images the logits change by" in done.stdout
    merged, trained = load_model(tmp_path / "m", "mlx"), load_run(run).model.logits(batch)
    assert merged.base.packed
    assert relative(merged.model.logits(batch), trained) > ROUNDING


def test_a_model_made_from_a_run_is_evaluated_on_its_images(run, tmp_path):
    command("merge", run, tmp_path / "m", "--dequantize")
    documents = [
        json.loads(command("eval", run, *more, "--json").stdout)
        for more in ((), ("--model", tmp_path / "m"), ("--model", tmp_path / "m", "--backend", "mlx"))
    ]
    bare, *models = (document["metrics"] for document in documents)
    assert all(m["top1"] == bare["top1"] and m["loss"] == pytest.approx(bare["loss"], rel=1e-4) for m in models)


def test_a_plain_run_has_no_codes_to_speak_of(tmp_path, run):
    experiment = RunFolder(run).read_config().model_copy(update={"quantize": None})
    train(experiment, tmp_path / "run")
    done = command("merge", tmp_path / "run", tmp_path / "m", "--requantize")
    assert done.exit_code == 2 and "is not quantised: leave requantize out (--requantize)" in done.stderr
    assert command("quantize", tmp_path / "run", tmp_path / "q", "--bits", 8).exit_code == 0


@pytest.fixture(scope="module")
def through(run, tmp_path_factory):
    """As ``run``, but trained through the codes that it is merged into, their scales trained too."""
    experiment = load(run / "config.yaml").model_copy(
        update={"quantize": None, "qat": QAT(bits=4, group_size=32, scales="learned")}
    )
    out = tmp_path_factory.mktemp("runs") / "through"
    train(experiment, out)
    return out


def test_what_was_trained_through_codes_is_merged_into_them(through, batch, tmp_path):
    done = command("merge", through, tmp_path / "merged")
    assert done.exit_code == 0, done.output
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["quantization"] == {
        "bits": 4,
        "group_size": 32,
    }
    seen = load_run(through).model.logits(batch)
    for backend in ("mlx", "torch"):
        logits = load_model(tmp_path / "merged", backend).model.logits(batch)
        assert relative(logits, seen) <= ROUNDING
    metrics = [
        json.loads(command("eval", through, "--json", *more).stdout)["metrics"]
        for more in ((), ("--model", tmp_path / "merged"))
    ]
    assert metrics[0]["top1"] == metrics[1]["top1"] and metrics[0]["loss"] == pytest.approx(metrics[1]["loss"])


def test_it_needs_no_other_codes(through, tmp_path):
    for arguments, reason in (
        (("merge", through, tmp_path / "m", "--requantize"), "leave requantize out"),
        (("quantize", through, tmp_path / "m", "--bits", 8), "through codes of 4 bits in groups of 32"),
    ):
        refused = command(*arguments)
        assert refused.exit_code == 2 and reason in refused.stderr
    assert not (tmp_path / "m").exists()


def test_what_was_trained_through_codes_can_be_written_as_plain_weights(through, batch, tmp_path):
    assert command("merge", through, tmp_path / "plain", "--dequantize").exit_code == 0
    assert "quantization" not in json.loads((tmp_path / "plain" / "config.json").read_text())
    seen, plain = load_run(through).model.logits(batch), load_model(tmp_path / "plain", "torch").model.logits(batch)
    assert relative(plain, seen) <= ROUNDING


def test_its_adapter_alone_knows_its_codes(through, batch, tmp_path):
    shutil.copytree(through / "adapter", tmp_path / "alone")
    assert np.array_equal(
        load_run(tmp_path / "alone", "torch").model.logits(batch), load_run(through).model.logits(batch)
    )

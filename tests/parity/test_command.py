"""``mlx-peft parity`` and ``mlx-peft bench``: what they print, and their exit status."""

import json
import os
import re

import pytest
import torch  # noqa: F401  before MLX: see mlx_peft.backend.blas
from typer.testing import CliRunner

from mlx_peft.checks import matrix, parity, products
from mlx_peft.cli import progress
from mlx_peft.cli.app import app
from mlx_peft.vit.architecture import Architecture


@pytest.fixture
def small(monkeypatch):
    """Models of two narrow blocks, three steps, and few rows of the matrix."""
    args = {"patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 2}
    cut = {"image_size": 32, "args": args}
    monkeypatch.setattr(matrix, "CUT", cut)
    monkeypatch.setattr(matrix, "MODELS", {"vit_tiny_patch16_224": cut, "deit_tiny_distilled_patch16_224": cut})
    monkeypatch.setattr(matrix, "QUANTIZED_MODELS", ("vit_tiny_patch16_224",))
    monkeypatch.setattr(matrix, "QUANTIZED_METHODS", ("lora",))
    monkeypatch.setattr(matrix, "BITS", (3,))
    monkeypatch.setattr(matrix, "STEPS", 3)


def test_parity_prints_json_alone(small):
    done = CliRunner().invoke(app, ["parity", "--method", "lora", "--json"])
    report = json.loads(done.stdout)
    assert done.exit_code == 0
    assert [(c["model"], c["method"], c["bits"]) for c in report["cells"]] == [("vit_tiny_patch16_224", "lora", None)]
    assert 0 < report["max_logits"] <= parity.LOGITS
    assert 0 < report["max_gradients"] <= parity.GRADIENTS
    assert report["compiled"] is False, "as all tests are that do not ask for it"


@pytest.mark.parametrize(("cpu", "asked"), [(True, None), (True, "lora"), (False, None)])
def test_mlx_compiles_nothing_where_kernels_would_take_minutes(monkeypatch, cpu, asked):
    monkeypatch.delenv(parity.UNCOMPILED)
    monkeypatch.setattr(parity, "installed", lambda name: name if cpu and name == "mlx-cpu" else None)
    parity.compile_nothing(unless=asked)
    assert (parity.UNCOMPILED in os.environ) == (cpu and asked is None)


def test_parity_over_quantised_bases_alone(small):
    done = CliRunner().invoke(app, ["parity", "--bits", "3", "--json"])
    assert [(c["method"], c["bits"]) for c in json.loads(done.stdout)["cells"]] == [("lora", 3)]
    wrong = CliRunner().invoke(app, ["parity", "--bits", "7"])
    assert wrong.exit_code == 2 and "not 7" in wrong.stderr


def test_parity_of_everything_goes_on_to_every_model_and_codes(small, tmp_path):
    file = tmp_path / "parity.json"
    done = CliRunner().invoke(app, ["parity", "--all", "--method", "lora", "--no-steps", "--out", str(file)])
    assert done.exit_code == 0, done.output
    assert [(c["model"], c["bits"]) for c in json.loads(file.read_text())["cells"]] == [
        ("vit_tiny_patch16_224", None), ("deit_tiny_distilled_patch16_224", None), ("vit_tiny_patch16_224", 3)
    ]  # fmt: skip
    assert "agree in all 3 cells, in " in done.stdout


def test_parity_writes_the_table_that_it_prints(small, tmp_path):
    file = tmp_path / "parity.md"
    done = CliRunner().invoke(app, ["parity", "--method", "linear", "--out", str(file)])
    assert file.read_text() == done.stdout
    assert "largest errors: logits" in done.stdout
    wrong = CliRunner().invoke(app, ["parity", "--out", str(tmp_path / "parity.txt")])
    assert wrong.exit_code == 2 and ".json or .md" in wrong.stderr


def test_a_log_says_how_many_cells_there_are_still_to_come(small, monkeypatch):
    monkeypatch.setattr(progress, "PATIENCE", 0.0)
    done = CliRunner().invoke(app, ["parity", "--all", "--method", "linear", "--no-steps"])
    assert re.match(r"1 of 2 cells, [\d.]+ s left$", done.stderr.splitlines()[0])


def test_parity_ends_with_status_1_past_a_tolerance(small, monkeypatch):
    monkeypatch.setattr(parity, "GRADIENTS", 0.0)
    done = CliRunner().invoke(app, ["parity", "--method", "linear"])
    assert done.exit_code == 1
    assert "differ in 1 of 1 cell, " in done.stdout


def test_products_of_a_step_are_counted_by_hand():
    """Two blocks, 5 tokens of width 4, one head; what the head does not read of the last block is not computed."""
    a = Architecture(img_size=4, patch_size=2, embed_dim=4, depth=2, num_heads=1, mlp_ratio=2)
    operations = sum(times * batch * m * k * n for times, batch, m, k, n in products.step(a, batch=1))
    patches = 4 * 12 * 4
    block = 5 * 4 * 12 + 5 * 4 * 4 + 2 * 5 * 4 * 8
    last = 5 * 4 * 12 + 1 * 4 * 4 + 2 * 1 * 4 * 8
    backward = 5 * 4 * 12 + (5 + 1) * (4 * 4 + 2 * 4 * 8)  # none into the first block's qkv: nothing trains before it
    attention = 6 * (5 + 1) * 5 * 4
    assert operations == patches + block + last + backward + attention


@pytest.mark.slow
@pytest.mark.usefixtures("compiled")
def test_bench_times_every_contender_in_a_process_of_its_own():
    done = CliRunner().invoke(
        app, ["bench", "--model", "vit_tiny_patch16_224", "--batch-size", "1", "--rounds", "2", "--json"]
    )
    assert done.exit_code == 0, done.output
    (report,) = json.loads(done.stdout)["benchmarks"]
    assert [c["name"] for c in report["contenders"]] == ["mlx", "torch", "peft"]
    ours, theirs = report["contenders"][1:]
    assert ours["saved_bytes"] <= theirs["saved_bytes"]
    assert all(len(c["seconds"]) == 2 and c["process_bytes"] > 0 for c in report["contenders"])
    assert report["contenders"][0]["arrays_bytes"] > 0, "MLX counts its arrays anywhere"

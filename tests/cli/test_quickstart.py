"""The quickstart as ``make demo`` runs it."""

import json

import pytest
from typer.testing import CliRunner

from mlx_peft.cli.app import app


@pytest.mark.slow
def test_lora_wins_clearly_over_the_linear_probe(tmp_path):
    top1 = {}
    for method in ("lora", "linear"):
        out = tmp_path / method
        arguments = ["train", "quickstart", f"method.name={method}", "--backend", "mlx", "--out", str(out), "--json"]
        done = CliRunner().invoke(app, arguments)
        assert done.exit_code == 0, done.output
        top1[method] = json.loads(done.stdout)["metrics"]["test"]["top1"]
    # 359 test images: the difference of two such shares has a standard error of about 2.5 points.
    assert top1["lora"] - top1["linear"] > 0.1

"""The matrix's axis of precisions: each backend in half precision against torch in float32, per parameter."""

import json

import pytest
import torch  # noqa: F401  before MLX: see mlx_peft.backend.blas

# isort: split
from halves import half_of
from typer.testing import CliRunner

from mlx_peft.checks import precision
from mlx_peft.checks.matrix import METHODS, QUANTIZED_METHODS
from mlx_peft.cli.app import app

SUMMED_OVER_ROWS = ("layernorm", "bitfit", "full", "ssf", "linear")
"""Methods that train what meets every row."""

SOME_ROWS = 1000
"""Enough for a sum in bfloat16 to be off by more than is allowed; tests/models has 12,608 rows for each layer."""


def check(model, method, which, rows=precision.ROWS, bits=None):
    (compared,) = precision.combinations([model], [method], bits)
    cells = list(precision.compare(compared, [which], rows))
    assert [cell.backend for cell in cells] == ["torch", "mlx"]
    for cell in cells:
        assert cell.rows >= rows
        assert 0 < cell.logits <= precision.allowed(precision.LOGITS, which, cell.depth), cell.backend
        assert 0 < cell.gradients <= precision.allowed(METHODS[method].roundings, which, cell.depth), cell
        assert cell.passed


@pytest.mark.parametrize(("method", "which"), half_of(SUMMED_OVER_ROWS, precision.ROUND_OFF))
def test_half_precision_is_near_float32_under_what_sums_over_rows(method, which):
    check(precision.FIRST, method, which, SOME_ROWS)


@pytest.mark.slow
@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("which", precision.ROUND_OFF)
@pytest.mark.parametrize(("model", "method"), [(one.model, one.method) for one in precision.whole()])
def test_half_precision_is_near_float32_in_the_whole_matrix(model, method, which):
    check(model, method, which)


@pytest.mark.slow
@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("which", precision.ROUND_OFF)
@pytest.mark.parametrize("method", QUANTIZED_METHODS)
def test_half_precision_is_near_float32_over_codes(method, which):
    check(precision.FIRST, method, which, bits=4)


def test_the_command_compares_in_a_precision(monkeypatch):
    monkeypatch.setattr(precision, "compare", lambda *arguments: iter([cell()]))
    done = CliRunner().invoke(
        app, ["parity", "--precision", "bfloat16", "--method", "linear", "--model", precision.FIRST, "--json"]
    )
    assert done.exit_code == 0
    (found,) = json.loads(done.stdout)["cells"]
    assert (found["precision"], found["backend"], found["rows"]) == ("bfloat16", "mlx", 12_608)
    unknown = CliRunner().invoke(app, ["parity", "--precision", "bfloat16", "--method", "lorra"])
    assert unknown.exit_code == 2 and "lora" in unknown.stderr


@pytest.mark.parametrize("figure", ["logits", "loss", "gradients"])
def test_the_command_ends_with_status_1_past_a_tolerance(monkeypatch, figure):
    far = cell(**{figure: 1.01 * precision.allowed(METHODS["linear"].roundings, "bfloat16", depth=2)})
    monkeypatch.setattr(precision, "compare", lambda *arguments: iter([cell(), far]))
    done = CliRunner().invoke(
        app, ["parity", "--precision", "bfloat16", "--method", "linear", "--model", precision.FIRST]
    )
    assert done.exit_code == 1
    assert "differ in 1 of 2 cells" in done.stdout


def cell(**figures):
    """One that passes, but for the figures."""
    exact = {"logits": 1e-3, "loss": 1e-4, "gradients": 1e-2} | figures
    return precision.HalfCell(
        model=precision.FIRST, method="linear", bits=None, precision="bfloat16", backend="mlx", depth=2,
        rows=12_608, worst="head.weight", **exact,
    )  # fmt: skip

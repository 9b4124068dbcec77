"""What is loaded by its name stands in one table, but for the names of the two packages that a notebook imports."""

from __future__ import annotations

import ast
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlx_peft.protocols import loading

ROOT = Path(__file__).parents[2]
TABLE = ROOT / "mlx_peft" / "protocols" / "loading.py"
FACADES = {ROOT / "mlx_peft" / "__init__.py", ROOT / "torch_ref" / "__init__.py"}
"""They say where their own names are."""
PROCESSES = {
    "mlx_peft.checks.bench",
    "mlx_peft.checks.bench_tokens",
    "mlx_peft.checks.bench_inference",
    "mlx_peft.checks.doctor.step",
    "mlx_peft.checks.estimating",
    "mlx_peft.cli.worker",
}
"""They are run by their names, each as a process of its own."""
IN_ORDER = ("torch", "mlx_peft.backend.blas", "mlx.core")
LOADED = [*sys.modules]
"""When this test was collected; what tests import, take out and put back does not change it."""
OURS = ("mlx_peft.", "torch_ref.", "convert.")
SOURCES = sorted(path for package in ("mlx_peft", "torch_ref", "convert") for path in (ROOT / package).rglob("*.py"))


def named(path: Path) -> Iterator[str]:
    """Modules of ours that a file names in a string which is nothing else, docstrings left out."""
    source = path.read_text()
    if not any(f"{quote}{package}" in source for quote in "\"'" for package in OURS):
        return
    tree = ast.parse(source)
    docstrings = {node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in docstrings:
            text = node.value
            if text.startswith(OURS) and all(part.isidentifier() for part in text.split(".")):
                yield text


def test_no_other_file_names_a_module_that_is_to_be_loaded() -> None:
    found = {path: {name for name in named(path) if name not in PROCESSES} for path in SOURCES}
    assert {path for path, names in found.items() if names} == FACADES | {TABLE}


@pytest.mark.parametrize(
    "module",
    [*(loading.BACKENDS | loading.EXPORTERS | loading.PEERS).values(), loading.FOREIGN, loading.LOADERS],
)
def test_each_entry_is_a_module(module: str) -> None:
    assert importlib.util.find_spec(module) is not None


def test_the_tests_load_the_fast_blas_before_mlx():
    """All of them, in whatever order they are collected: with the other one MLX's products take ten times as long."""
    importlib.import_module("mlx.core")
    places = [[*LOADED, *sys.modules].index(name) for name in IN_ORDER]
    assert places == sorted(places)

"""Nothing heavy is loaded for help, which is what makes it quick."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest

COMMANDS = (
    "train",
    "estimate",
    "sweep",
    "eval",
    "predict",
    "explain",
    "combine",
    "merge",
    "quantize",
    "simulate",
    "convert",
    "info",
    "push",
    "pull",
    "serve",
    "doctor",
    "parity",
    "report",
    "ls",
    "cat",
    "cp",
    "complete",
    "data",
    "bench",
    "config",
)
HEAVY = (
    "mlx", "torch", "numpy", "scipy", "yaml", "PIL", "matplotlib", "sklearn", "safetensors", "huggingface_hub",
    "pydantic", "rich", "fastapi", "uvicorn", "prometheus_client",
)  # fmt: skip
OURS = (
    "mlx_peft.config.schema",
    "mlx_peft.config.files",
    "mlx_peft.data",
    "mlx_peft.protocols",
    "mlx_peft.training",
    "mlx_peft.checks",
    "mlx_peft.artifacts",
    "mlx_peft.studies",
    "mlx_peft.report",
    "mlx_peft.serve",
    "mlx_peft.backend",
    "convert",
)

ARGUMENTS = [
    ["--help"], *([name, "--help"] for name in COMMANDS), ["config", "show", "-h"], ["data", "check", "-h"],
    ["--version"], ["bench", "data", "-h"],
]  # fmt: skip
READS = {"bench data -h": ["pydantic"]}
"""Typer reads the arguments of ``bench`` itself first, numbers among them, and loads what it does that with."""

LOADED = """
import sys
from mlx_peft.cli import main
for sys.argv[1:] in {arguments}:
    print("ASKED", *sys.argv[1:], flush=True)
    main()
    print("LOADED", *sorted({heavy} & set(sys.modules)), flush=True)
"""


def test_what_is_not_to_be_loaded_is_there() -> None:
    assert all(importlib.util.find_spec(module) for module in OURS)


@pytest.fixture(scope="module")
def answers() -> dict[str, str]:
    """What is printed for each of ARGUMENTS, one after the other in one process: what one loads stays loaded."""
    code = LOADED.format(arguments=ARGUMENTS, heavy={*HEAVY, *OURS})
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return dict(part.split("\n", 1) for part in done.stdout.split("ASKED ")[1:])


@pytest.mark.parametrize("arguments", [" ".join(one) for one in ARGUMENTS])
def test_help_loads_nothing_heavy(answers: dict[str, str], arguments: str) -> None:
    answer, _, loaded = answers[arguments].partition("LOADED ")
    assert answer.startswith(("Usage: mlx-peft", "mlx-peft "))
    assert loaded.split() == READS.get(arguments, [])


@pytest.mark.parametrize(("module", "name"), [("mlx_peft", "mlx-peft"), ("torch_ref", "torch-ref")])
def test_each_program_calls_itself_by_its_name(module: str, name: str) -> None:
    done = subprocess.run([sys.executable, "-m", module, "--help"], capture_output=True, text=True)
    assert done.stdout.startswith(f"Usage: {name} ")


def test_every_command_is_listed() -> None:
    done = subprocess.run([sys.executable, "-m", "mlx_peft", "--help"], capture_output=True, text=True)
    listed = [line.split()[0] for line in done.stdout.partition("Commands:")[2].splitlines() if line.strip()]
    assert listed == list(COMMANDS)
    assert "..." not in done.stdout.partition("Commands:")[2]


PREPARED = """
import sys
import mlx_peft.cli.progress, mlx_peft.report.ranks, mlx_peft.report.evaluation, mlx_peft.training.train
from mlx_peft.config.schema import Data
from mlx_peft.data import open_dataset
open_dataset(Data(name="digits"))
print(*sorted({"scipy", "sklearn", "matplotlib", "pandas", "huggingface_hub", "tensorboard"} & set(sys.modules)))
"""


def test_a_first_step_waits_for_no_library_that_measures_draws_or_downloads() -> None:
    done = subprocess.run([sys.executable, "-c", PREPARED], capture_output=True, text=True)
    assert (done.returncode, done.stdout.split()) == (0, []), done.stderr

"""A stand-in for the hub on this machine, and a run to send to it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hub_stand_in import Hub, standing_in
from typer.testing import CliRunner

from mlx_peft.cli.app import app
from mlx_peft.config.schema import Experiment
from mlx_peft.training.train import train

ARGS = {"patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with standing_in(monkeypatch, tmp_path) as server:
        yield server


@pytest.fixture(scope="session")
def experiment() -> Experiment:
    return Experiment.model_validate({
        "backend": "torch",
        "model": {"name": "vit_tiny_patch16_224", "weights": "none", "image_size": 32, "args": ARGS},
        "method": {"name": "lora", "rank": 4, "targets": ["q", "v"]},
        "data": {"name": "digits", "batch_size": 128, "split": {"val": 0.1, "test": 0.5}},
        "train": {"epochs": 1},
    })  # fmt: skip


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory, experiment: Experiment) -> Path:
    """A finished run of a few steps."""
    out = tmp_path_factory.mktemp("runs") / "mine"
    train(experiment, out)
    return out


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs a command line in an empty folder, with torch."""
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: CliRunner().invoke(app, list(map(str, arguments)), obj="torch")

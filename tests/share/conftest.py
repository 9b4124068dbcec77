"""A stand-in for the hub on this machine, and a run to send to it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hub_stand_in import Hub, standing_in
from PIL import Image
from typer.testing import CliRunner

from convert.base import load_base
from convert.timm.write import write_model
from mlx_peft.cli.app import app
from mlx_peft.config.schema import Experiment, Model
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


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 32, 3), np.uint8)).save(path)
    return path


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A whole model's folder."""
    args = {"patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 3}
    base = load_base(Model(name="vit_tiny_patch16_224", weights="none", image_size=32, args=args), 3, seed=0)
    write_model(tmp_path / "model", base=base, tensors=base.tensors)
    return tmp_path / "model"

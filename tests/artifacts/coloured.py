"""Finished runs on images of one colour, of a model that takes a moment."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch  # noqa: F401  before MLX: see mlx_peft.backend.blas
from fake_backend import make_dataset
from typer.testing import CliRunner

from mlx_peft.artifacts import images
from mlx_peft.cli.app import app
from mlx_peft.config.schema import Experiment
from mlx_peft.config.tokens_text import reducer_of
from mlx_peft.training import prepare
from mlx_peft.training.train import train

ARGS = {"patch_size": 4, "embed_dim": 64, "depth": 3, "num_heads": 2}
MODEL = {"name": "vit_tiny_patch16_224", "weights": "none", "image_size": 16, "args": ARGS}
OPTIONS = {"weights": "none", "image_size": 16, "args": ARGS, "num_classes": 3, "head": "new"}
"""The same model, as ``create_model`` is asked for it."""
LORA = {"name": "lora", "rank": 4}
BATCH = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), dtype=np.uint8)


@pytest.fixture(scope="module", autouse=True)
def colours() -> Iterator[None]:
    """The data set in the place of any."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (prepare, images):
            patch.setattr(module, "open_dataset", lambda config, watch=None: make_dataset())
        yield


def command(*arguments: Any) -> Any:
    return CliRunner().invoke(app, list(map(str, arguments)), obj="torch")


def trained(out: Path, tokens: str = "none", method: dict[str, Any] = LORA, **more: Any) -> Path:
    """A finished run of one epoch."""
    reducer = reducer_of(tokens)
    experiment = {
        "backend": "torch",
        "model": MODEL,
        "method": method,
        "tokens": None if reducer is None else reducer.model_dump(),
        "data": {"name": "colours", "batch_size": 8, "threads": 1},
        "train": {"epochs": 1},
    }
    train(Experiment.model_validate(experiment | more), out)
    return out

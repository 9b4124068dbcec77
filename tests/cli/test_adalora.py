"""``train`` with AdaLoRA: the picture of its ranks, and what is refused before anything is written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch  # noqa: F401  before MLX: see mlx_peft.backend.blas
import yaml

CONFIG = {
    "model": {
        "name": "vit_tiny_patch16_224",
        "weights": "none",
        "image_size": 8,
        "args": {"patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 3},
    },
    "method": {"name": "adalora", "init_rank": 4, "target_rank": 2, "t_init": 2, "t_final": 3, "targets": ["q", "fc1"]},
    "data": {"name": "digits", "batch_size": 128},
    "train": {"epochs": 1},
}


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(CONFIG))
    return path


def test_a_run_ends_with_a_picture_of_its_ranks(command: Callable[..., Any], config: Path, tmp_path: Path) -> None:
    done = command("train", config, "--backend", "torch", "--out", "run", "--json")
    assert done.exit_code == 0, done.output
    json.loads(done.stdout)
    assert (tmp_path / "run" / "ranks.png").stat().st_size > 1000
    again = command("train", config, "--backend", "torch", "--out", "run", "--resume")
    assert "run/ranks.png" in again.stdout


def test_a_schedule_beyond_the_run_is_refused_before_it_starts(
    command: Callable[..., Any], config: Path, tmp_path: Path
) -> None:
    done = command("train", config, "method.t_init=10", "--backend", "torch", "--out", "run")
    assert done.exit_code == 2
    assert "t_init 10 + method.t_final 3 leave no step to prune in: the run has 13 in all" in done.stderr
    assert not (tmp_path / "run").exists()

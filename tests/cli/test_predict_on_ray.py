"""Images answered on a cluster: the answers of one process, in its order."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch  # noqa: F401  before MLX: see mlx_peft.backend.blas
from PIL import Image

from convert.base import load_base
from convert.timm.write import write_model
from mlx_peft.cli import shards
from mlx_peft.config.schema import Model

ARGS: dict[str, Any] = {"patch_size": 8, "depth": 1, "embed_dim": 32, "num_heads": 2}


class Cluster:
    """Stands for Ray: a task is done when it is asked for, the last one first where several are under way."""

    class exceptions:
        class RayTaskError(Exception):
            cause: Exception = Exception()

    def __init__(self) -> None:
        self.shards: list[int] = []

    def remote(self, function: Any) -> Any:
        class Task:
            @staticmethod
            def remote(*arguments: Any) -> Any:
                self.shards.append(len(arguments[2]))
                return lambda: function(*arguments)

        return Task

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 1.0}

    def get(self, task: Any) -> Any:
        return task()


@pytest.fixture
def standing_in(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    made = Cluster()
    monkeypatch.setattr(shards, "cluster", lambda address: nullcontext())
    monkeypatch.setattr(shards, "installed", lambda: made)
    monkeypatch.setattr(shards, "SHARD", 2)
    shards._kept.cache_clear()
    return made


@pytest.fixture
def model(tmp_path: Path) -> Path:
    base = load_base(Model(name="vit_tiny_patch16_224", weights="none", image_size=16, args=ARGS), 3, seed=0)
    write_model(tmp_path / "model", base=base, tensors=base.tensors, classes=("x", "y", "z"))
    return tmp_path / "model"


def answers(done: Any) -> list[dict[str, Any]]:
    """Of each image, its likeliest class, or that it cannot be read. Probabilities are not compared: they depend, in
    their last bits, on how many images are computed together."""
    found = [json.loads(line) for line in done.stdout.splitlines()]
    return [{**one, "predictions": [p["class"] for p in one.get("predictions", [])]} for one in found]


def test_the_answers_are_those_of_one_process_in_its_order(command: Any, standing_in: Cluster, model: Path) -> None:
    for number, pixels in enumerate(np.random.default_rng(0).integers(0, 256, (4, 20, 24, 3), np.uint8)):
        Path("photos").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(f"photos/{number}.png")
    Path("photos/broken.png").write_bytes(b"no image")
    words = ("predict", model, "photos", "--format", "jsonl", "--backend", "torch")
    alone, shared = command(*words), command(*words, "--ray", "local")
    assert alone.exit_code == shared.exit_code == 1, shared.stderr
    assert answers(shared) == answers(alone) and len(answers(alone)) == 5
    assert standing_in.shards == [2, 2, 1]


def test_where_none_can_be_read_that_is_said(command: Any, standing_in: Cluster, model: Path) -> None:
    for number in range(3):
        Path(f"{number}.png").write_bytes(b"no image")
    done = command("predict", model, "0.png", "1.png", "2.png", "--backend", "torch", "--ray", "local")
    assert done.exit_code == 2 and "none of the 3 images can be read; the first: " in done.stderr


def test_features_are_not_for_a_cluster(command: Any, model: Path) -> None:
    done = command("predict", model, "a.png", "--features", "f.npz", "--ray", "local")
    assert done.exit_code == 2 and "leave --ray out" in done.stderr

"""A real run of AdaLoRA, interrupted while triplets are masked and after, ends with the bytes of one that never was."""

import os
import signal
from pathlib import Path

import pytest
import torch  # noqa: F401  before MLX: see mlx_peft.backend.blas

# isort: split
from halves import daily

from mlx_peft.config.schema import Experiment
from mlx_peft.training.progress import Silent
from mlx_peft.training.run import read_metrics
from mlx_peft.training.stop import Interrupted
from mlx_peft.training.train import train

TIMINGS = ("images_per_second", "seconds")

EXPERIMENT = {
    "model": {
        "name": "vit_tiny_patch16_224",
        "weights": "none",
        "image_size": 8,
        "args": {"patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 3},
    },
    "method": {
        "name": "adalora",
        "init_rank": 4,
        "target_rank": 2,
        "t_init": 5,
        "t_final": 12,
        "delta_t": 4,
        "dropout": 0.1,
        "targets": ["q", "v", "fc1"],
    },
    "data": {"name": "digits", "batch_size": 128},
    "train": {"epochs": 3, "log_every": 1, "clip_norm": 1.0},
}
STEPS, LAST_MASK = 39, 27


class Impatient(Silent):
    """Interrupts the run at some steps."""

    def __init__(self, *at: int) -> None:
        self.at = at

    def step(self, event) -> None:
        if event.step in self.at:
            os.kill(os.getpid(), signal.SIGINT)


def run(backend: str, out: Path, *interrupted_at: int) -> None:
    experiment = Experiment.model_validate(EXPERIMENT | {"backend": backend})
    for at in interrupted_at:
        with pytest.raises(Interrupted):
            train(experiment, out, resume=True, progress=Impatient(at))
    train(experiment, out, resume=True)


def outcome(out: Path):
    lines = [
        {key: value for key, value in line.items() if key not in TIMINGS}
        for line in read_metrics(out / "metrics.jsonl")
    ]
    return lines, {file.name: file.read_bytes() for file in sorted((out / "adapter").iterdir())}


@pytest.mark.parametrize("backend", daily(["mlx", "torch"], "mlx"))
def test_an_interrupted_run_of_adalora_ends_with_the_same_adapter(backend, tmp_path):
    run(backend, tmp_path / "whole")
    run(backend, tmp_path / "parts", 9, 15, 23, 30)
    whole, parts = outcome(tmp_path / "whole"), outcome(tmp_path / "parts")
    assert parts == whole
    ranks = [line for line in whole[0] if any(key.startswith("rank/") for key in line)]
    steps = [line["step"] for line in ranks]
    assert steps[0] == 1 and steps[-1] <= LAST_MASK and len(steps) > 3, (
        "ranks must change for this test to say anything"
    )
    assert sum(rank for key, rank in ranks[-1].items() if key.startswith("rank/")) == 2 * 6
    assert whole[0][-1]["step"] == STEPS

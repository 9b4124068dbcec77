"""Runs whose frozen blocks are computed once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch  # noqa: F401  before MLX: see mlx_peft.backend.blas

from mlx_peft.config.schema import Experiment
from mlx_peft.training.progress import EpochEvent, Silent, StepEvent

TRAINED, VALIDATED = 44, 21
"""Images of the splits."""

VIT = {
    "name": "vit_tiny_patch16_224",
    "weights": "none",
    "image_size": 16,
    "args": {"patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2},
}


class Watcher(Silent):
    def __init__(self) -> None:
        self.notes: list[str] = []
        self.epochs: list[EpochEvent] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def epoch(self, event: EpochEvent) -> None:
        self.epochs.append(event)


class Killed(Exception):
    pass


class Killer(Silent):
    """Ends the run as a kill does, without a checkpoint, once so many steps are done."""

    def __init__(self, step: int) -> None:
        self.last = step

    def step(self, event: StepEvent) -> None:
        if event.step == self.last:
            raise Killed


def experiment(
    backend: str,
    method: dict[str, Any] | str = "linear",
    model: dict[str, Any] | None = None,
    data: dict[str, Any] | None = None,
    **options: Any,
) -> Experiment:
    return Experiment.model_validate({
        "backend": backend,
        "model": VIT | (model or {}),
        "method": {"name": method} if isinstance(method, str) else method,
        "data": {"name": "colours", "batch_size": 8, "threads": 1} | (data or {}),
        "train": {"epochs": 2, "optimizer": {"name": "sgd", "lr": 0.05}, "log_every": 1} | options,
    })  # fmt: skip


def files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}

"""Checkpoints: one safetensors file each, replaced as a whole or not at all."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from convert import tensor_file
from mlx_peft.core.border import Tensors
from mlx_peft.core.errors import UserError
from mlx_peft.core.writing import disk_errors, to_disk
from mlx_peft.engine.progress import Metrics

FACTS = "facts"
"""The one key of a file's metadata: safetensors writes several in no fixed order, and equal runs have equal bytes."""


@dataclass
class Position:
    """Where a run stands: with the learner's state, all that going on exactly from here needs."""

    step: int = 0
    """Optimiser steps done."""
    epoch: int = 0
    """Epochs done, their evaluation included."""
    batch: int = 0
    """Batches done of the epoch that runs."""
    loss_sum: float = 0.0
    """Over the images of the epoch that runs, so that its mean is the same after a resume."""
    images: int = 0
    """Trained on in the epoch that runs."""
    epoch_seconds: float = 0.0
    """Spent training in the epoch that runs."""
    images_before: int = 0
    """Trained on in the epochs done."""
    seconds_before: float = 0.0
    """Spent training in the epochs done."""
    best_epoch: int = 0
    """The epoch selected so far, counted from 1; 0 where none is."""
    best: Metrics = field(default_factory=dict)
    """Its metrics on the validation split; empty without one."""
    epochs_without_improvement: int = 0
    metrics_bytes: int = 0
    """Length of ``metrics.jsonl``; what a killed process wrote after it is cut off."""
    kept: dict[str, list[bool]] = field(default_factory=dict)
    """By adapter, the triplets that are not masked; empty before the first step, and where ranks are not dealt out."""
    peak_bytes: int = 0
    """The largest peak of memory of any process that worked on the run."""

    @property
    def images_trained(self) -> int:
        return self.images_before + self.images

    @property
    def train_seconds(self) -> float:
        return self.seconds_before + self.epoch_seconds

    def next_epoch(self) -> None:
        """The epoch that ran is done."""
        self.images_before, self.seconds_before = self.images_trained, self.train_seconds
        self.epoch, self.batch, self.loss_sum, self.images, self.epoch_seconds = self.epoch + 1, 0, 0.0, 0, 0.0


def save_checkpoint(path: Path, tensors: Tensors, **facts: Any) -> None:
    """Writes ``tensors``, and ``facts`` as JSON in the file's metadata.

    Raises UserError where the disk is full or read-only; a file that was there stays as it was.
    """
    layout = {name: (tensor_file.OWN[tensor.dtype], tensor.shape) for name, tensor in tensors.items()}
    with disk_errors(path):
        path.parent.mkdir(exist_ok=True)
        temporary = path.with_name(f".{path.name}.tmp")
        try:
            tensor_file.write(temporary, layout, tensors.__getitem__, {FACTS: json.dumps(facts)})
            to_disk(temporary)
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def load_checkpoint(path: Path) -> tuple[Tensors, dict[str, Any]]:
    """What ``save_checkpoint`` wrote: the tensors, and the facts. Raises UserError where the file is damaged."""
    try:
        file = tensor_file.open_file(path)
        facts = json.loads(file.metadata[FACTS])
        return {name: file.array(name).copy() for name in file.entries}, facts
    except (UserError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} is not a whole checkpoint ({error}): it was damaged after it was written. "
            "The run cannot go on from it; start again in another folder"
        ) from error

"""Checkpoints: one safetensors file each, replaced as a whole or not at all, and checked when it is read."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import ConfigDict, Field

from convert import tensor_file
from mlx_peft.core.border import Tensors
from mlx_peft.core.errors import UserError, shortened
from mlx_peft.core.writing import disk_errors, in_place_of, to_disk

FACTS = "facts"
"""The one key of a file's metadata beside the digest."""

LONGEST_TOLD = 100
"""Characters."""

Count = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]


@dataclass
class Change:
    """What was changed in a run that went on, of that which decides its outcome."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True)

    step: Count
    """So many steps were done before the change."""
    key: str
    before: Any
    now: Any

    def __str__(self) -> str:
        return f"{told(self.key)}: {told(self.before)} until step {self.step}, {told(self.now)} from there"


def told(value: Any) -> str:
    """A value of a checkpoint in a message: one that is damaged may have it of any length."""
    return shortened(str(value), LONGEST_TOLD)


@dataclass
class Position:
    """Where a run stands: with the trainer's state, all that going on exactly from here needs."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True)

    step: Count = 0
    """The number of optimiser steps that are done."""
    epoch: Count = 0
    """The number of epochs that are done, with their evaluation."""
    batch: Count = 0
    """The number of batches that are done of the epoch that runs."""
    loss_sum: Finite = 0.0
    """The sum of the loss over the images of the epoch that runs: so its mean is the same after a resume."""
    images: Count = 0
    """The number of images that were trained on in the epoch that runs."""
    epoch_seconds: Seconds = 0.0
    """The time that training took in the epoch that runs."""
    images_before: Count = 0
    """The number of images that were trained on in the epochs that are done."""
    seconds_before: Seconds = 0.0
    """The time that training took in the epochs that are done."""
    best_epoch: Count = 0
    """The epoch selected so far, counted from 1; 0 where none is."""
    best: dict[str, Finite] = field(default_factory=dict)
    """Its metrics on the validation split; empty without one."""
    epochs_without_improvement: Count = 0
    metrics_bytes: Count = 0
    """The length of ``metrics.jsonl``; what a process that was killed wrote after it is cut off."""
    metrics_sha256: str = ""
    """The digest of so many bytes of ``metrics.jsonl``; empty in checkpoints of earlier versions."""
    kept: dict[str, list[bool]] = field(default_factory=dict)
    """For each adapter, which of its triplets are not masked; empty before the first step, and where no ranks are
    dealt out."""
    peak_bytes: Count = 0
    """The largest peak of any process that worked on the run: of arrays where they are counted, else of the process."""
    process_bytes: Count = 0
    """The largest peak of any such process as a whole."""
    changes: list[Change] = field(default_factory=list)
    """What was changed on the way, in order."""

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


def save_checkpoint(path: Path, tensors: Tensors, *, previous: Path | None = None, **facts: Any) -> None:
    """Writes ``tensors``, and ``facts`` as JSON in the file's metadata.

    Raises UserError where the disk is full or read-only; a file that was there stays as it was.

    Args:
        previous: where the file that was there is kept, in the place of an older one. A process that is killed between
            the two moves leaves that one alone.
    """
    layout = {name: (tensor_file.OWN[tensor.dtype], tensor.shape) for name, tensor in tensors.items()}
    with disk_errors(path):
        path.parent.mkdir(exist_ok=True)
        with in_place_of(path, path.with_name(f".{path.name}.tmp"), previous) as unfinished:
            tensor_file.write(unfinished, layout, tensors.__getitem__, {FACTS: json.dumps(facts, allow_nan=False)})
            to_disk(unfinished)


def load_checkpoint(path: Path) -> tuple[Tensors, dict[str, Any]]:
    """What ``save_checkpoint`` wrote: the tensors, and the facts. Raises UserError where the file is damaged."""
    try:
        file = tensor_file.open_file(path)
        facts = json.loads(file.metadata[FACTS])
        if not isinstance(facts, dict):
            raise TypeError("its facts are no JSON object")
        return {name: file.array(name).copy() for name in file.entries}, facts
    except (UserError, KeyError, TypeError, ValueError, RecursionError) as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else error
        raise UserError(f"{path} is not a whole checkpoint ({reason}): it was damaged after it was written") from error

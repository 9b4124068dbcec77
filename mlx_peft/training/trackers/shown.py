"""What a tracker is told of a run, and under which names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlx_peft.training.run import Record

PROJECT = "mlx-peft"
"""What the runs of this package are together, where a tracker wants to know."""

TAGS = {
    "loss": "train/loss",
    "lr": "train/learning_rate",
    "images_per_second": "train/images_per_second",
    "train_loss": "train/epoch_loss",
    "val_map": "val/mean_average_precision",
    "val_ece": "val/calibration_error",
}


@dataclass(frozen=True)
class Shown:
    """A run.

    Attributes:
        key: what it is known by: a run that is resumed has the same.
        config: the experiment's values, by dotted key.
        history: the records so far, which are to be shown.
    """

    folder: Path
    key: str
    config: Mapping[str, Any]
    history: Sequence[Record] = field(default=())

    @property
    def name(self) -> str:
        return f"{self.folder.resolve().name}-{self.key}" if self.key else self.folder.resolve().name


def tag_of(name: str) -> str | None:
    """The tag of an entry of a record; None where it is not shown.

    Other metrics of validation keep their names, ``val/top1``; and what holds a slash, such as
    ``rank/blocks.0.attn.qkv``, is a tag as it is.
    """
    if name.startswith("val_"):
        return TAGS.get(name, f"val/{name.removeprefix('val_')}")
    return TAGS.get(name, name if "/" in name else None)


def tagged(record: Record) -> Iterator[tuple[str, float]]:
    """The values of a record that are shown, by their tags."""
    for name, value in record.items():
        if tag := tag_of(name):
            yield tag, value

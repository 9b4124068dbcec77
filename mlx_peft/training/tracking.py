"""Where the records of ``metrics.jsonl`` are shown besides: a registry of trackers by name."""

from __future__ import annotations

import importlib
import io
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from mlx_peft.core.errors import UserError
from mlx_peft.core.writing import disk_errors, write_whole
from mlx_peft.training.run import Record


class Tracker(Protocol):
    """Shows records as they are made."""

    package: str
    """The name of the package that has to be installed."""

    def log(self, record: Record) -> None: ...

    def close(self) -> None: ...


TAGS = {
    "loss": "train/loss",
    "lr": "train/learning_rate",
    "images_per_second": "train/images_per_second",
    "train_loss": "train/epoch_loss",
    "val_map": "val/mean_average_precision",
    "val_ece": "val/calibration_error",
}


def tag_of(name: str) -> str | None:
    """The tag of an entry of a record; None where it is not shown.

    Other metrics of validation keep their names, ``val/top1``; and what holds a slash, such as
    ``rank/blocks.0.attn.qkv``, is a tag as it is.
    """
    if name.startswith("val_"):
        return TAGS.get(name, f"val/{name.removeprefix('val_')}")
    return TAGS.get(name, name if "/" in name else None)


EVENTS, VERSION = "events.out.tfevents.", "brain.Event:2"
"""TensorBoard knows its files by the beginning of their names, and by the form that the first event says."""


class TensorBoard:
    """Scalars in an event file of the run's folder, written with TensorBoard's own encoder and no other framework.

    A resumed run starts a new file with its whole history, marked as a restart: TensorBoard then forgets what it read
    in the older files. These stay, since one that is watching would lose its place, but without their points, so that
    whoever reads all files has each step once. The file's name, unlike TensorBoard's own, does not hold the host's.
    """

    package = "tensorboard"

    def __init__(self, folder: Path, history: Iterable[Record]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.plugins.scalar.summary_v2 import scalar_pb
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event, self._scalar = Event, scalar_pb
        older = sorted(folder.glob(f"{EVENTS}*"))
        self._path = folder / f"{EVENTS}{time.time_ns()}"
        with disk_errors(self._path):
            self._file = open(self._path, "xb")  # noqa: SIM115
            self._writer = RecordWriter(self._file)
            self._write(file_version=VERSION)
            self._write(session_log=SessionLog(status=SessionLog.START))
        for record in history:
            self.log(record)
        empty = io.BytesIO()
        RecordWriter(empty).write(Event(wall_time=time.time(), file_version=VERSION).SerializeToString())
        for path in older:
            write_whole(path, empty.getvalue())

    def log(self, record: Record) -> None:
        with disk_errors(self._path):
            for name, value in record.items():
                if tag := tag_of(name):
                    self._write(step=int(record["step"]), summary=self._scalar(tag, value))
            self._file.flush()

    def close(self) -> None:
        with disk_errors(self._path):
            self._file.close()

    def _write(self, **fields: object) -> None:
        self._writer.write(self._event(wall_time=time.time(), **fields).SerializeToString())


TRACKERS = {"tensorboard": TensorBoard}


def check_trackers(names: Iterable[str]) -> None:
    """Raises UserError where the package of a tracker is not installed."""
    for name in names:
        try:
            importlib.import_module(TRACKERS[name].package)
        except ImportError as error:
            raise UserError(
                f"track: {name} is not installed; install it with: pip install 'mlx-peft[track]'"
            ) from error


def open_trackers(names: Iterable[str], folder: Path, history: Iterable[Record]) -> list[Tracker]:
    """The trackers of a run, having shown ``history`` already."""
    records = list(history)
    return [TRACKERS[name](folder, records) for name in names]

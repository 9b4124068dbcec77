"""TensorBoard's event files."""

from __future__ import annotations

import io
import time
from collections.abc import Mapping
from pathlib import Path

from PIL import Image

from mlx_peft.core.writing import disk_errors, write_whole
from mlx_peft.training.run import Record
from mlx_peft.training.trackers.shown import Shown, tagged

EVENTS, VERSION = "events.out.tfevents.", "brain.Event:2"
"""TensorBoard knows its files by the beginning of their names, and by the form that the first event says."""


class TensorBoard:
    """Scalars in an event file of the run's folder, written with TensorBoard's own encoder and no other framework.

    A resumed run starts a new file with its whole history, marked as a restart: TensorBoard then forgets what it read
    in the older files. These stay, since one that is watching would lose its place, but without their points, so that
    whoever reads all files has each step once. The file's name, unlike TensorBoard's own, does not hold the host's.
    """

    package = "tensorboard"

    def __init__(self, run: Shown) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.plugins.scalar.summary_v2 import scalar_pb
        from tensorboard.plugins.text.summary_v2 import text_pb
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event, self._scalar = Event, scalar_pb
        older = sorted(run.folder.glob(f"{EVENTS}*"))
        self._path = run.folder / f"{EVENTS}{time.time_ns()}"
        with disk_errors(self._path):
            self._file = open(self._path, "xb")  # noqa: SIM115
            self._writer = RecordWriter(self._file)
            self._write(file_version=VERSION)
            self._write(session_log=SessionLog(status=SessionLog.START))
            if run.config:
                rows = "".join(f"| {key} | {value} |\n" for key, value in run.config.items())
                self._write(summary=text_pb("config", f"| key | value |\n| --- | --- |\n{rows}"))
        self._last = 0
        for record in run.history:
            self.log(record)
        empty = io.BytesIO()
        RecordWriter(empty).write(Event(wall_time=time.time(), file_version=VERSION).SerializeToString())
        for path in older:
            write_whole(path, empty.getvalue())

    def log(self, record: Record) -> None:
        with disk_errors(self._path):
            self._last = int(record["step"])
            for tag, value in tagged(record):
                self._write(step=self._last, summary=self._scalar(tag, value))
            self._file.flush()

    def end(self, metrics: Mapping[str, float], pictures: Mapping[str, Path]) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        with disk_errors(self._path):
            for tag, value in metrics.items():
                self._write(step=self._last, summary=self._scalar(tag, value))
            for tag, path in pictures.items():
                with Image.open(path) as image:
                    width, height = image.size
                png = Summary.Image(encoded_image_string=path.read_bytes(), width=width, height=height, colorspace=4)
                self._write(step=self._last, summary=Summary(value=[Summary.Value(tag=tag, image=png)]))
            self._file.flush()

    def close(self) -> None:
        with disk_errors(self._path):
            self._file.close()

    def _write(self, **fields: object) -> None:
        self._writer.write(self._event(wall_time=time.time(), **fields).SerializeToString())

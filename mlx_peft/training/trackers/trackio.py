"""Trackio: a database of this machine (``TRACKIO_DIR``), which ``trackio show`` draws."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlx_peft.training.run import Record
from mlx_peft.training.trackers.shown import PROJECT, Shown, tagged


class Trackio:
    """A run of Trackio; one that is resumed goes on in it."""

    def __init__(self, run: Shown) -> None:
        import trackio

        self._trackio: Any = trackio
        self._run: Any = trackio.init(PROJECT, name=run.name, config=dict(run.config), resume="allow", embed=False)
        shown = self._run._next_step  # said nowhere else
        for record in run.history:
            if record["step"] >= shown:
                self.log(record)

    def log(self, record: Record) -> None:
        self._run.log(dict(tagged(record)), step=int(record["step"]))

    def end(self, metrics: Mapping[str, float], pictures: Mapping[str, Path]) -> None:
        images = {tag: self._trackio.Image(str(path)) for tag, path in pictures.items()}
        self._run.log({**metrics, **images})

    def close(self) -> None:
        self._run.finish()

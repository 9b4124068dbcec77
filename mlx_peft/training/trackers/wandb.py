"""Weights & Biases, on its servers or, with ``WANDB_MODE=offline``, in a folder (``WANDB_DIR``) that is sent later."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlx_peft.training.run import Record
from mlx_peft.training.trackers.shown import PROJECT, Shown, tagged


class WeightsAndBiases:
    """A run of Weights & Biases; one that is resumed goes on in it, from the step that it has reached there."""

    def __init__(self, run: Shown) -> None:
        import wandb

        self._wandb: Any = wandb
        self._run: Any = wandb.init(
            project=PROJECT, name=run.name, id=run.key or None, resume="allow", config=dict(run.config)
        )
        for record in run.history:
            if record["step"] >= self._run.step:
                self.log(record)

    def log(self, record: Record) -> None:
        self._run.log(dict(tagged(record)), step=int(record["step"]))

    def end(self, metrics: Mapping[str, float], pictures: Mapping[str, Path]) -> None:
        self._run.summary.update(dict(metrics))
        if pictures:
            self._run.log({tag: self._wandb.Image(str(path)) for tag, path in pictures.items()})

    def close(self) -> None:
        self._run.finish()

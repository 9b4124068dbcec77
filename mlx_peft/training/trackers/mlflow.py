"""MLflow: where ``MLFLOW_TRACKING_URI`` says, or its own usual place."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlx_peft.training.run import Record
from mlx_peft.training.trackers.shown import PROJECT, Shown, tagged

KEY = "mlx-peft-run"
"""The tag by which a run that is resumed is found."""

LONGEST = 500
"""A value of the configuration is shown up to so many letters."""


class MLflow:
    """A run of MLflow; one that is resumed goes on in it."""

    def __init__(self, run: Shown) -> None:
        from mlflow import MlflowClient

        self._client: Any = MlflowClient()
        found = self._client.get_experiment_by_name(PROJECT)
        experiment = self._client.create_experiment(PROJECT) if found is None else found.experiment_id
        before = self._client.search_runs([experiment], f"tags.`{KEY}` = '{run.name}'", max_results=1)
        if before:
            self._id = before[0].info.run_id
            self._client.update_run(self._id, status="RUNNING")
        else:
            made = self._client.create_run(experiment, run_name=run.folder.resolve().name, tags={KEY: run.name})
            self._id = made.info.run_id
            for key, value in run.config.items():
                self._client.log_param(self._id, key, str(value)[:LONGEST])
        self._shown = {tag: max(point.step for point in self._history(tag)) for tag in self._tags()}
        for record in run.history:
            self.log(record)

    def log(self, record: Record) -> None:
        """What is there already stays: a run that was resumed makes some steps a second time."""
        for tag, value in tagged(record):
            if (step := int(record["step"])) > self._shown.get(tag, -1):
                self._client.log_metric(self._id, tag, value, step=step)

    def end(self, metrics: Mapping[str, float], pictures: Mapping[str, Path]) -> None:
        for tag, value in metrics.items():
            self._client.log_metric(self._id, tag, value)
        for path in pictures.values():
            self._client.log_artifact(self._id, str(path), path.parent.name)

    def close(self) -> None:
        self._client.set_terminated(self._id)

    def _tags(self) -> list[str]:
        return list(self._client.get_run(self._id).data.metrics)

    def _history(self, tag: str) -> list[Any]:
        return list(self._client.get_metric_history(self._id, tag))

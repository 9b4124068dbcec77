"""Where the records of ``metrics.jsonl`` are shown besides: a registry of trackers by name."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from mlx_peft.config.schema import Experiment
from mlx_peft.core.errors import UserError
from mlx_peft.training.run import Record, RunFolder, flatten, read_metrics
from mlx_peft.training.trackers.mlflow import MLflow
from mlx_peft.training.trackers.shown import Shown
from mlx_peft.training.trackers.tensorboard import TensorBoard
from mlx_peft.training.trackers.trackio import Trackio
from mlx_peft.training.trackers.wandb import WeightsAndBiases


class Tracker(Protocol):
    """Shows a run while it is made, and what came of it."""

    def log(self, record: Record) -> None:
        """A record, as it is made."""
        ...

    def end(self, metrics: Mapping[str, float], pictures: Mapping[str, Path]) -> None:
        """The metrics of the finished run, and PNG files, by their tags."""
        ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Kind:
    """How a tracker is made, of which package, and what installs that."""

    open: Callable[[Shown], Tracker]
    package: str
    extra: str


TRACKERS = {
    "tensorboard": Kind(TensorBoard, "tensorboard", "track"),
    "trackio": Kind(Trackio, "trackio", "trackio"),
    "wandb": Kind(WeightsAndBiases, "wandb", "wandb"),
    "mlflow": Kind(MLflow, "mlflow", "mlflow"),
}


def check_trackers(names: Iterable[str]) -> None:
    """Raises UserError where the package of a tracker is not installed."""
    for name in names:
        kind = TRACKERS[name]
        try:
            importlib.import_module(kind.package)
        except ImportError as error:
            raise UserError(
                f"track: {name} is not installed; install it with: pip install 'mlx-peft[{kind.extra}]'"
            ) from error


def open_trackers(
    names: Iterable[str],
    folder: Path,
    history: Iterable[Record],
    key: str = "",
    config: Mapping[str, Any] | None = None,
) -> list[Tracker]:
    """The trackers of a run, having shown ``history`` already."""
    shown = Shown(folder, key, config or {}, tuple(history))
    return [TRACKERS[name].open(shown) for name in names]


def show_end(experiment: Experiment, folder: Path, result: Mapping[str, Any], pictures: Iterable[Path]) -> None:
    """Shows the trackers of a finished run what came of it, and what was drawn of it."""
    if not experiment.track:
        return
    history = read_metrics(RunFolder(folder).metrics)
    trackers = open_trackers(experiment.track, folder, history, str(result["run_id"]), configured(experiment))
    metrics = {
        f"{split}/{name}": float(value)
        for split, found in result["metrics"].items()
        for name, value in (found or {}).items()
        if name != "count"
    }
    found = {f"{path.parent.name}/{path.stem}": path for path in pictures if path.suffix == ".png"}
    for tracker in trackers:
        tracker.end({f"final/{name}": value for name, value in metrics.items()}, found)
        tracker.close()


def configured(experiment: Experiment) -> dict[str, Any]:
    """The experiment's values, by dotted key, as trackers show them: without where things lie on this machine."""
    told = flatten(experiment.model_dump(mode="json"))
    return {key: value for key, value in told.items() if key not in ("data.root", "data.cache.folder")}

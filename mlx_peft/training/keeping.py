"""What a run leaves on the disk while it trains: its metrics, its checkpoints, and what trackers show."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from mlx_peft.config.schema import Experiment
from mlx_peft.core.border import Tensors
from mlx_peft.tasks.metrics import Metrics
from mlx_peft.training.checkpoint import Position, save_checkpoint
from mlx_peft.training.metrics_file import MetricsFile
from mlx_peft.training.resume import VERSION
from mlx_peft.training.run import Record, RunFolder, binding, read_metrics
from mlx_peft.training.tracking import Tracker, configured, open_trackers


class Keeper(Protocol):
    """Of the processes of a run one keeps what it leaves, see ``Kept``, and the others nothing."""

    def write(self, record: Record) -> None:
        """Adds a record to the metrics."""
        ...

    def track(self, record: Record) -> None:
        """Shows a record to the trackers."""
        ...

    def forget_trackers(self) -> None:
        """Shows nothing to them from now on: one of them may be the reason why a run ends."""
        ...

    def select(self, adapter: Callable[[], Tensors], epoch: int, metrics: Metrics) -> None:
        """Keeps the parameters of the epoch that is the best so far."""
        ...

    def checkpoint(self, state: Callable[[], Tensors], position: Position) -> None:
        """Keeps all that going on from here needs, and the checkpoint before it."""
        ...


class Nothing:
    """Another process of the run keeps it all."""

    def write(self, record: Record) -> None:
        pass

    def track(self, record: Record) -> None:
        pass

    def forget_trackers(self) -> None:
        pass

    def select(self, adapter: Callable[[], Tensors], epoch: int, metrics: Metrics) -> None:
        pass

    def checkpoint(self, state: Callable[[], Tensors], position: Position) -> None:
        pass


@dataclass
class Kept:
    """It is kept in a run's folder."""

    folder: RunFolder
    metrics: MetricsFile
    trackers: Sequence[Tracker]
    facts: dict[str, Any] = field(default_factory=dict)
    """What each checkpoint says beside the position."""

    def write(self, record: Record) -> None:
        self.metrics.write(record)

    def track(self, record: Record) -> None:
        for tracker in self.trackers:
            tracker.log(record)

    def forget_trackers(self) -> None:
        self.trackers = ()

    def select(self, adapter: Callable[[], Tensors], epoch: int, metrics: Metrics) -> None:
        save_checkpoint(self.folder.best, adapter(), previous=self.folder.previous_best, epoch=epoch, metrics=metrics)

    def checkpoint(self, state: Callable[[], Tensors], position: Position) -> None:
        position.metrics_bytes, position.metrics_sha256 = self.metrics.sync()
        save_checkpoint(
            self.folder.last, state(), previous=self.folder.previous, position=asdict(position), **self.facts
        )


@contextmanager
def keeping(
    folder: RunFolder, experiment: Experiment, position: Position, identity: dict[str, Any], writes: bool
) -> Iterator[Keeper]:
    """What keeps a run that goes on from a position, for as long as the block runs: nothing, unless it ``writes``.

    ``identity`` is what must be the same after a resume.
    """
    if not writes:
        yield Nothing()
        return
    with ExitStack() as stack:
        metrics = stack.enter_context(closing(MetricsFile(folder.metrics, position.metrics_bytes)))
        history = read_metrics(folder.metrics)
        trackers = open_trackers(
            experiment.track, folder.path, history, str(identity.get("run_id", "")), configured(experiment)
        )
        for tracker in trackers:
            stack.enter_context(closing(tracker))
        facts = {"version": VERSION, "identity": identity, "settings": binding(experiment)}
        yield Kept(folder, metrics, trackers, facts)

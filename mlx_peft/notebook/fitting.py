"""Training by one call: an experiment in its folder, or a notebook's model where it stands."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from mlx_peft.config.schema import Experiment
from mlx_peft.core.border import Tensors
from mlx_peft.core.errors import UserError
from mlx_peft.data import Dataset
from mlx_peft.tasks.metrics import Metrics
from mlx_peft.tasks.registry import leading
from mlx_peft.training.checkpoint import Position
from mlx_peft.training.fit import fit
from mlx_peft.training.here import Here
from mlx_peft.training.prepare import Prepared, prepare
from mlx_peft.training.progress import EpochEvent, Progress, Silent
from mlx_peft.training.resume import best
from mlx_peft.training.run import Record, RunFolder, read_metrics
from mlx_peft.training.stop import Interrupted, StopSignal
from mlx_peft.training.train import batches, tested


@dataclass(frozen=True, repr=False)
class Fitted:
    """What came of training.

    Attributes:
        val: metrics of the validation split in the epoch that was selected; None where there is no such split, and the
            last epoch counts.
        test: metrics of the test split, which was looked at once, at the end; None where there is none.
        epoch: the number of the epoch that was selected, from 1 on.
        history: what was recorded on the way: entries as the lines of a run's ``metrics.jsonl``.
        folder: of the run that an experiment became; None where a model was trained.
    """

    val: Metrics | None
    test: Metrics | None
    epoch: int
    history: list[Record]
    folder: Path | None = None

    def __repr__(self) -> str:
        told = [f"epoch {self.epoch}", *(told_of(name, one) for name, one in (("val", self.val), ("test", self.test)))]
        place = [] if self.folder is None else [f"in {self.folder}"]
        return f"Fitted({', '.join([*filter(None, told), *place])})"


def told_of(split: str, metrics: Metrics | None) -> str:
    """``val top1 0.943, loss 0.21``; nothing where there are none."""
    if not metrics:
        return ""
    name = leading(metrics)
    return f"{split} " + ", ".join(f"{key} {metrics[key]:.4g}" for key in dict.fromkeys((name, "loss")))


class Telling(Silent):
    """The watcher of a notebook: a line an epoch; of a run that begins with an experiment, notes too."""

    def __init__(self, notes: bool = False) -> None:
        self.notes = notes

    def note(self, text: str) -> None:
        if self.notes:
            print(f"note: {text}")

    def epoch(self, event: EpochEvent) -> None:
        told = ", ".join(filter(None, (f"loss {event.train_loss:.4g}", told_of("val", event.val))))
        print(f"epoch {event.epoch}/{event.epochs}: {told}{'  (best)' if event.best and event.val else ''}")


def fitted(
    experiment: Experiment,
    start: Tensors,
    base_sha256: str,
    dataset: Dataset,
    take: Callable[[Tensors], None],
    progress: Progress,
) -> Fitted:
    """Trains an adapter further, by a run whose folder is gone after it.

    Args:
        start: the adapter as it is.
        base_sha256: of the base below it.
        dataset: what it is trained on.
        take: is given the adapter that was selected; the last one that there was where a person broke training
            off; none where it failed.

    Raises:
        UserError: as a run; and where the base is not found as it was.
    """
    run = prepare(experiment, progress, Here(experiment, begun=True), dataset=dataset)  # it has its adapter already
    if run.base.sha256 != base_sha256:
        raise UserError(
            f"the weights below the adapter are not those of {run.base.source}, as this finds them: an earlier method "
            "changed them, or they were drawn from another seed"
        )
    run.trainer.model.load_adapter(start)
    with TemporaryDirectory(prefix="mlx-peft-") as place:
        try:
            found = _fitted(run, RunFolder(Path(place)), progress)
        except Interrupted as error:
            take(run.trainer.model.adapter())
            raise KeyboardInterrupt(str(error)) from None
    take(run.trainer.model.adapter())
    return found


def _fitted(run: Prepared, folder: RunFolder, progress: Progress) -> Fitted:
    with StopSignal().listening() as stop:
        position = fit(
            run.trainer, run.experiment, batches(run, stop), folder, Position(),
            identity=run.identity, progress=progress, stop=stop,
        )  # fmt: skip
        if run.dataset.val is not None:
            run.trainer.model.load_adapter(best(folder, position))
        test = tested(run, position, folder, progress, stop)
    history = read_metrics(folder.metrics)
    return Fitted(
        position.best or None, None if test is None else test.evaluation.metrics, position.best_epoch, history
    )

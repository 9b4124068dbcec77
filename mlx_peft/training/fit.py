"""The training loop: epochs of steps, validation, selection, checkpoints; stopped and continued anywhere."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from convert.files import listed
from mlx_peft.config.schema import Experiment, Train
from mlx_peft.core.errors import UserError
from mlx_peft.core.memory import process_peak
from mlx_peft.data import Batch
from mlx_peft.protocols.trainer import Trainer
from mlx_peft.training.allocation import RankAllocator, allocator
from mlx_peft.training.checkpoint import Position
from mlx_peft.training.evaluate import answers_of_all, measured
from mlx_peft.training.feed import Feed
from mlx_peft.training.keeping import Keeper, keeping
from mlx_peft.training.progress import EpochEvent, Progress
from mlx_peft.training.ranks import heard_by_all
from mlx_peft.training.resume import Diverged, diverged, ended
from mlx_peft.training.run import RunFolder
from mlx_peft.training.steps import Steps
from mlx_peft.training.stop import Interrupted, Stopped, StopSignal


def fit(
    trainer: Trainer,
    experiment: Experiment,
    feed: Feed,
    folder: RunFolder,
    position: Position,
    *,
    identity: dict[str, Any],
    progress: Progress,
    stop: StopSignal,
) -> Position:
    """Trains to the last epoch, or until early stopping, from a position on that ``resume.stands`` has given.

    Leaves the selected parameters in ``folder.best`` where there is a validation split; without one the last ones,
    which the model then holds, are selected. Where ranks are dealt out, an epoch before they are down to the budget
    is neither selected nor held against the run. ``identity`` is what must be the same after a resume.

    Raises UserError on a loss, logits or parameters that are not finite, and on a full disk; Interrupted where ``stop``
    is requested. Whatever ends it, a checkpoint of where it stood is written first, unless its parameters are not
    finite.
    """
    steps = position.step + (experiment.train.epochs - position.epoch) * feed.steps - position.batch
    dealer = allocator(experiment.method, steps)
    if dealer:
        dealer.start(trainer, position.kept)
    with keeping(folder, experiment, position, identity, writes=feed.world.rank == 0) as keeper:
        made = Steps(trainer, experiment.train, folder, keeper, steps, position, progress, dealer)
        Loop(trainer, experiment.train, feed, folder, keeper, made, position, progress, stop, dealer).run()
    return position


@dataclass
class Loop:
    """The state of a run's training that is not worth keeping beyond the process."""

    trainer: Trainer
    train: Train
    feed: Feed
    folder: RunFolder
    keeper: Keeper
    steps: Steps
    position: Position
    progress: Progress
    stop: StopSignal
    dealer: RankAllocator | None = None
    """What deals out the ranks, where the method has them dealt out."""

    @property
    def finished(self) -> bool:
        return ended(self.position, self.train) is not None

    def run(self) -> None:
        self.progress.start(self.position.step, self.steps.total, self.train.epochs)
        try:
            while not self.finished:
                if self.position.batch < self.feed.steps:
                    self.train_epoch()
                self.end_epoch()
        except Stopped:
            self.steps.settle_all()
            self.save()
            raise Interrupted(self.folder, self.position.step, self.steps.total) from None
        except Diverged:
            raise
        except Exception:
            self.rescue()
            raise

    def rescue(self) -> None:
        """An error ends the run: a checkpoint of where it stands, if that can be known and kept."""
        self.keeper.forget_trackers()
        try:
            self.steps.settle_all()
            if self.trainer.step != self.position.step:
                raise UserError("a step was interrupted before its end")
            self.save()
        except Exception as error:
            kept = f"the one in {self.folder.last} is kept" if self.folder.last.exists() else "there is none yet"
            self.progress.note(f"no checkpoint could be written before the end ({error}); {kept}")
        else:
            self.progress.note(
                f"a checkpoint is written, after step {self.position.step}: the run can go on from there"
            )

    def train_epoch(self) -> None:
        """The rest of the epoch, with the checkpoints in it."""
        every = self.train.checkpoint_every
        self.steps.start_clock()
        for number, batch in enumerate(self.batches(), start=self.position.step):
            self.steps.go_on(batch, number)
            if every is not None and (number + 1) % every == 0:
                self.steps.settle_all()
                self.save()
        self.steps.settle_all()
        self.stop.check()

    def batches(self) -> Iterator[Batch]:
        """The rest of the epoch's. Before each of them the processes of the run agree whether to go on."""
        batches = iter(self.feed.train(self.position.epoch, self.position.batch))
        while True:
            try:
                batch = next(batches, None)
            except UserError as error:
                self.stop.check(error)
                raise
            if batch is None:
                return
            self.stop.check()
            yield batch

    def end_epoch(self) -> None:
        """Validation, selection, and a checkpoint of the whole epoch."""
        here = self.position
        epoch = here.epoch + 1
        self.must_be_finite()
        val = None
        candidate = self.dealer is None or self.dealer.settled(here.step)
        better = candidate
        if self.feed.val is not None:
            self.progress.evaluating("val")
            answers = answers_of_all(
                self.trainer.model, self.feed.val(), self.feed.val_steps, self.feed.world, self.stop.check
            )
            val = measured(answers, self.feed.task, self.feed.num_classes)
            heard_by_all(self.feed.world, self.feed.unread)
            better = candidate and (not here.best or self.feed.task.score(val) > self.feed.task.score(here.best))
        if val and better:
            self.keeper.select(self.trainer.model.adapter, epoch, val)
        event = EpochEvent(
            epoch=epoch,
            epochs=self.train.epochs,
            train_loss=here.loss_sum / here.images,
            val=val,
            best=better,
            seconds=here.epoch_seconds,
        )
        metrics = {f"val_{name}": value for name, value in (val or {}).items() if name != "count"}
        record = {"step": here.step, "epoch": epoch, "train_loss": event.train_loss} | metrics
        self.keeper.write(record | {"seconds": event.seconds})
        self.add_up_peaks()
        # All at once, so that the position is before the epoch's end or after it whatever raises.
        if better:
            here.best_epoch, here.best, here.epochs_without_improvement = epoch, val or {}, 0
        elif candidate:
            here.epochs_without_improvement += 1
        here.next_epoch()
        self.keeper.track(record | {"seconds": event.seconds})
        self.save()
        self.progress.epoch(event)

    def save(self) -> None:
        """A checkpoint of the run as it stands, the last one kept. The time it takes is not training."""
        self.must_be_finite()
        here = self.position
        here.peak_bytes = max(here.peak_bytes, self.steps.peak())
        here.process_bytes = max(here.process_bytes, process_peak())
        self.keeper.checkpoint(self.trainer.state, here)
        self.steps.start_clock()

    def add_up_peaks(self) -> None:
        """What the processes of the run hold together counts, where there are several."""
        if self.feed.world.size > 1:
            peaks = [
                content.split() for content in self.feed.world.gather(b"%d %d" % (self.steps.peak(), process_peak()))
            ]
            arrays, processes = (sum(map(int, column)) for column in zip(*peaks, strict=True))
            here = self.position
            here.peak_bytes, here.process_bytes = max(here.peak_bytes, arrays), max(here.process_bytes, processes)

    def must_be_finite(self) -> None:
        """Raises Diverged where a parameter that is trained is not finite: nothing can be made of it any more."""
        if broken := sorted(name for name, p in self.trainer.model.adapter().items() if not np.isfinite(p).all()):
            what = f"there are NaN or infinite numbers in {listed(broken, 3)}"
            raise diverged(what, self.position, self.folder, self.train)

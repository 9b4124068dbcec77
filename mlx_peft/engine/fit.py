"""The training loop: epochs of steps, validation, selection, checkpoints; stopped and continued anywhere."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, field
from typing import Any, SupportsFloat

from mlx_peft.config.schema import Experiment, Train
from mlx_peft.core.errors import UserError
from mlx_peft.data import Batch
from mlx_peft.engine.allocation import Kept, RankAllocator, allocator, ranks
from mlx_peft.engine.backend import Learner
from mlx_peft.engine.checkpoint import Position, load_checkpoint, save_checkpoint
from mlx_peft.engine.evaluate import evaluate
from mlx_peft.engine.metrics import score
from mlx_peft.engine.progress import EpochEvent, Progress, StepEvent
from mlx_peft.engine.run import MetricsFile, Record, RunFolder, flatten, read_metrics
from mlx_peft.engine.schedule import learning_rate
from mlx_peft.engine.stop import Interrupted, Stopped, StopSignal
from mlx_peft.engine.tracking import Tracker, open_trackers


@dataclass(frozen=True)
class Feed:
    """The batches that training reads. The test split is not among them."""

    train: Callable[[int, int], Iterable[Batch]]
    """The batches of an epoch (counted from 0) from a given one on: the same ones each time."""
    steps: int
    """Batches in an epoch."""
    val: Callable[[], Iterable[Batch]] | None
    num_classes: int


def fit(
    learner: Learner,
    experiment: Experiment,
    feed: Feed,
    folder: RunFolder,
    *,
    identity: dict[str, Any],
    progress: Progress,
    stop: StopSignal,
) -> Position:
    """Trains to the last epoch, or until early stopping, from where the folder's checkpoint stands, if it has one.

    Leaves the selected parameters in ``folder.best`` where there is a validation split; without one the last ones,
    which the learner then holds, are selected. Where ranks are dealt out, an epoch before they are down to the budget
    is neither selected nor held against the run. ``identity`` is what must be the same after a resume. Raises
    UserError on a loss or logits that are not finite, on a full disk, and on a checkpoint that does not fit;
    Interrupted, with a checkpoint written, where ``stop`` is requested.
    """
    position = Position()
    if folder.last.exists():
        state, facts = load_checkpoint(folder.last)
        check_identity(facts["identity"], identity)
        learner.load_state(state)
        position = Position(**facts["position"])
        progress.note(f"going on after step {position.step}")
    dealer = allocator(experiment.method, experiment.train.epochs * feed.steps)
    if dealer:
        dealer.start(learner, position.kept)
    with ExitStack() as stack:
        metrics = stack.enter_context(closing(MetricsFile(folder.metrics, position.metrics_bytes)))
        trackers = open_trackers(experiment.track, folder.path, read_metrics(folder.metrics))
        for tracker in trackers:
            stack.enter_context(closing(tracker))
        loop = Loop(
            learner, experiment.train, feed, folder, identity, position, metrics, trackers, progress, stop, dealer
        )
        loop.run()
    return position


def check_identity(before: dict[str, Any], now: dict[str, Any]) -> None:
    """Raises UserError that names what is no longer what the run began with."""
    old, new = flatten(before), flatten(now)
    changed = [f"  {key}: {old.get(key)} then, {new.get(key)} now" for key in old | new if old.get(key) != new.get(key)]
    if changed:
        raise UserError("the run cannot go on: its data or weights have changed since it began\n" + "\n".join(changed))


@dataclass(frozen=True)
class Launched:
    """A step under way: its loss has not been waited for."""

    loss: SupportsFloat
    count: int
    lr: float
    kept: Kept = field(default_factory=dict)
    """The triplets that are not masked after it, where ranks are dealt out."""


@dataclass
class Loop:
    """The state of a run's training that is not worth keeping beyond the process."""

    learner: Learner
    train: Train
    feed: Feed
    folder: RunFolder
    identity: dict[str, Any]
    position: Position
    metrics: MetricsFile
    trackers: list[Tracker]
    progress: Progress
    stop: StopSignal
    dealer: RankAllocator | None = None
    """Of ranks, where the method has them dealt out."""
    clock: float = field(default_factory=time.perf_counter)
    """When the time that counts as training was last added up."""
    window_images: int = 0
    """Trained on since the last record."""
    window_seconds: float = 0.0

    @property
    def steps(self) -> int:
        """Of the whole run."""
        return self.train.epochs * self.feed.steps

    @property
    def finished(self) -> bool:
        patience = self.train.early_stopping
        stale = patience is not None and self.position.epochs_without_improvement >= patience
        return stale or self.position.epoch == self.train.epochs

    def run(self) -> None:
        self.progress.start(self.position.step, self.steps, self.train.epochs)
        try:
            while not self.finished:
                if self.position.batch < self.feed.steps:
                    self.train_epoch()
                self.end_epoch()
        except Stopped:
            self.save()
            raise Interrupted(self.folder, self.position.step, self.steps) from None

    def train_epoch(self) -> None:
        """The rest of the epoch. A step's loss is read once the next step is under way, so that neither waits."""
        every = self.train.checkpoint_every
        number = self.position.step
        waiting: Launched | None = None
        self.clock = time.perf_counter()
        for batch in self.feed.train(self.position.epoch, self.position.batch):
            launched = self.launch(batch, number)
            number += 1
            if waiting:
                self.settle(waiting)
            waiting = launched
            due = every is not None and number % every == 0
            if due or self.stop.requested:
                self.settle(waiting)
                waiting = None
                self.stop.check()
                self.save()
        if waiting:
            self.settle(waiting)

    def launch(self, batch: Batch, number: int) -> Launched:
        """Starts the step of a number, counted from 0. Waits for it only where ranks are decided on after it."""
        lr = learning_rate(number, self.steps, self.train.optimizer.lr, self.train.schedule)
        if self.dealer is None:
            loss = self.learner.train_step(batch.images, batch.targets, lr, weight=batch.weight)
            return Launched(loss, batch.count, lr)
        observe = self.dealer.observes(number + 1)
        loss = self.learner.train_step(batch.images, batch.targets, lr, weight=batch.weight, observe=observe)
        return Launched(loss, batch.count, lr, self.dealer.after(self.learner, number + 1))

    def settle(self, step: Launched) -> None:
        """Waits for a step, and moves the position past it."""
        loss = float(step.loss)
        here = self.position
        here.step += 1
        here.batch += 1
        if not math.isfinite(loss):
            raise UserError(self.diverged(loss))
        now = time.perf_counter()
        seconds, self.clock = now - self.clock, now
        here.loss_sum += loss * step.count
        here.images += step.count
        here.epoch_seconds += seconds
        self.window_images += step.count
        self.window_seconds += seconds
        speed = self.window_images / self.window_seconds
        logged = here.step == 1 or here.step % self.train.log_every == 0
        if logged:
            self.record({
                "step": here.step, "epoch": here.epoch + 1, "loss": loss, "lr": step.lr, "images_per_second": speed
            })  # fmt: skip
            self.window_images, self.window_seconds = 0, 0.0
        left = ranks(step.kept)
        if left != ranks(here.kept):
            dealt: Record = {f"rank/{adapter}": rank for adapter, rank in left.items()}
            self.record({"step": here.step, "epoch": here.epoch + 1} | dealt)
        here.kept = step.kept
        self.progress.step(
            StepEvent(
                step=here.step,
                steps=self.steps,
                epoch=here.epoch + 1,
                epochs=self.train.epochs,
                loss=loss,
                lr=step.lr,
                images_per_second=speed,
                peak_bytes=self.learner.peak_memory(),
                logged=logged,
            )
        )

    def end_epoch(self) -> None:
        """Validation, selection, and a checkpoint of the whole epoch."""
        here = self.position
        epoch = here.epoch + 1
        val = None
        candidate = self.dealer is None or self.dealer.settled(here.step)
        better = candidate
        if self.feed.val is not None:
            self.progress.evaluating("val")
            val = evaluate(self.learner, self.stop.watch(self.feed.val()), self.feed.num_classes)
            better = candidate and (not here.best or score(val) > score(here.best))
        if val and better:
            save_checkpoint(self.folder.best, self.learner.adapter(), epoch=epoch, metrics=val)
        if better:
            here.best_epoch, here.best, here.epochs_without_improvement = epoch, val or {}, 0
        elif candidate:
            here.epochs_without_improvement += 1
        event = EpochEvent(
            epoch=epoch,
            epochs=self.train.epochs,
            train_loss=here.loss_sum / here.images,
            val=val,
            best=better,
            seconds=here.epoch_seconds,
        )
        metrics = {f"val_{name}": value for name, value in (val or {}).items() if name != "count"}
        self.record(
            {"step": here.step, "epoch": epoch, "train_loss": event.train_loss} | metrics | {"seconds": event.seconds}
        )
        here.next_epoch()
        self.save()
        self.progress.epoch(event)

    def record(self, record: Record) -> None:
        self.metrics.write(record)
        for tracker in self.trackers:
            tracker.log(record)

    def save(self) -> None:
        """A checkpoint of the run as it stands. The time it takes is not training."""
        self.position.metrics_bytes = self.metrics.sync()
        self.position.peak_bytes = max(self.position.peak_bytes, self.learner.peak_memory())
        save_checkpoint(self.folder.last, self.learner.state(), position=asdict(self.position), identity=self.identity)
        self.clock = time.perf_counter()

    def diverged(self, loss: float) -> str:
        remedies = [f"a lower train.optimizer.lr (it was {self.train.optimizer.lr:g})"]
        if self.train.clip_norm is None:
            remedies.append("train.clip_norm=1")
        if self.train.precision != "float32":
            remedies.append("train.precision=float32")
        kept = f"; the last checkpoint is kept in {self.folder.last}" if self.folder.last.exists() else ""
        where = f"at step {self.position.step} (epoch {self.position.epoch + 1})"
        return f"the loss is {loss} {where}: training diverged. Try {' or '.join(remedies)}{kept}"

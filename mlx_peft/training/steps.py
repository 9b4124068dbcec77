"""Steps of training: each launched while the one before it is at work, then waited for, timed, and told."""

from __future__ import annotations

import math
import time
from collections import deque
from dataclasses import dataclass, field
from typing import SupportsFloat

from mlx_peft.config.schema import Train
from mlx_peft.core.memory import process_peak
from mlx_peft.data import Batch
from mlx_peft.protocols.trainer import Trainer
from mlx_peft.training.allocation import Kept, RankAllocator, ranks
from mlx_peft.training.checkpoint import Position
from mlx_peft.training.keeping import Keeper
from mlx_peft.training.progress import Progress, StepEvent
from mlx_peft.training.resume import diverged
from mlx_peft.training.run import Record, RunFolder
from mlx_peft.training.schedule import learning_rate


@dataclass(frozen=True)
class Launched:
    """A step under way: its loss has not been waited for."""

    loss: SupportsFloat
    count: int
    lr: float
    kept: Kept = field(default_factory=dict)
    """The triplets that are not masked after it, where ranks are dealt out."""


@dataclass
class Steps:
    """Those of a run: it moves the position past each that is done. A step's loss is read once the next one is under
    way, so that neither waits."""

    trainer: Trainer
    train: Train
    folder: RunFolder
    keeper: Keeper
    total: int
    """The number of steps of the whole run."""
    position: Position
    progress: Progress
    dealer: RankAllocator | None = None
    """What deals out the ranks, where the method has them dealt out."""
    under_way: deque[Launched] = field(default_factory=deque)
    """Steps that were launched and not waited for: one, or two while the older is waited for."""
    clock: float = field(default_factory=time.perf_counter)
    """When the time that counts as training was last added up."""
    window_images: int = 0
    """The number of images that were trained on since the last record."""
    window_seconds: float = 0.0

    def start_clock(self) -> None:
        """What passed until now is not training."""
        self.clock = time.perf_counter()

    def go_on(self, batch: Batch, number: int) -> None:
        """Launches the step of a number, counted from 0, and settles the one before it."""
        self.under_way.append(self.launch(batch, number))
        if len(self.under_way) > 1:
            self.settle()

    def settle_all(self) -> None:
        """Waits for all that are under way."""
        while self.under_way:
            self.settle()

    def launch(self, batch: Batch, number: int) -> Launched:
        """Starts the step of a number, counted from 0. Waits for it only where ranks are decided on after it."""
        lr = learning_rate(number, self.total, self.train.optimizer.lr, self.train.schedule)
        if self.dealer is None:
            loss = self.trainer.train_step(batch.images, batch.targets, lr, weight=batch.weight)
            return Launched(loss, batch.count, lr)
        observe = self.dealer.observes(number + 1)
        loss = self.trainer.train_step(batch.images, batch.targets, lr, weight=batch.weight, observe=observe)
        return Launched(loss, batch.count, lr, self.dealer.after(self.trainer, number + 1))

    def settle(self) -> None:
        """Waits for the oldest step under way, and moves the position past it. Only then is it told to anyone."""
        step = self.under_way.popleft()
        loss = float(step.loss)
        here = self.position
        here.step += 1
        here.batch += 1
        if not math.isfinite(loss):
            raise diverged(f"the loss is {loss}", self.position, self.folder, self.train)
        now = time.perf_counter()
        seconds, self.clock = now - self.clock, now
        here.loss_sum += loss * step.count
        here.images += step.count
        here.epoch_seconds += seconds
        self.window_images += step.count
        self.window_seconds += seconds
        speed = self.window_images / self.window_seconds
        logged = here.step == 1 or here.step % self.train.log_every == 0
        records: list[Record] = []
        if logged:
            records.append({
                "step": here.step, "epoch": here.epoch + 1, "loss": loss, "lr": step.lr, "images_per_second": speed
            })  # fmt: skip
            self.window_images, self.window_seconds = 0, 0.0
        left = ranks(step.kept)
        if left != ranks(here.kept):
            dealt: Record = {f"rank/{adapter}": rank for adapter, rank in left.items()}
            records.append({"step": here.step, "epoch": here.epoch + 1} | dealt)
        here.kept = step.kept
        self.record(*records)
        self.progress.step(
            StepEvent(
                step=here.step,
                steps=self.total,
                epoch=here.epoch + 1,
                epochs=self.train.epochs,
                loss=loss,
                lr=step.lr,
                images_per_second=speed,
                peak_bytes=self.peak(),
                logged=logged,
            )
        )

    def peak(self) -> int:
        """Bytes at the peak so far: of arrays where they are counted, else of the process."""
        arrays = self.trainer.peak_memory()
        return process_peak() if arrays is None else arrays

    def record(self, *records: Record) -> None:
        for record in records:
            self.keeper.write(record)
        for record in records:
            self.keeper.track(record)

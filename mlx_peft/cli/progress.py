"""How a run is watched: bars on a terminal, plain lines in a log; both on standard error."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

from mlx_peft.core.text import counted, printable_lines
from mlx_peft.report.format import headline, seconds, size
from mlx_peft.training.progress import EpochEvent, StepEvent


@contextmanager
def watch() -> Iterator[Lines | Bars]:
    """The watcher that suits standard error, for as long as the block runs."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    if not console.is_terminal:
        yield Lines()
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=16),
        MofNCompleteColumn(),
        TextColumn("{task.fields[facts]}"),
        TimeRemainingColumn(compact=True),
    )
    # What is printed meanwhile stands above the bars, unless it goes to a file.
    with Progress(*columns, console=console, transient=True, redirect_stdout=sys.stdout.isatty()) as bars:
        yield Bars(bars)


PATIENCE, EVERY = 1.0, 30.0
"""Seconds of looking at images of which nothing is said; and from one line about it to the next."""


class Pace:
    """How fast something goes that began when this was made."""

    def __init__(self) -> None:
        self.start = self.said = time.monotonic()

    def due(self) -> bool:
        """Whether it is time for a line: after PATIENCE, then every EVERY seconds."""
        now = time.monotonic()
        wait = PATIENCE if self.said == self.start else EVERY
        if now - self.said < wait:
            return False
        self.said = now
        return True

    def left(self, done: int, total: int) -> str:
        """``, 20 s left``; nothing where that cannot be known, and at the end."""
        elapsed = time.monotonic() - self.start
        return f", {seconds(elapsed / done * (total - done))} left" if 0 < done < total else ""

    def line(self, what: str, done: int, total: int | None) -> str:
        """``trying the images of train: 1,200 of 9,000, 400 images/s, 20 s left``; without the last where nobody knows
        how many there are."""
        rate = done / max(time.monotonic() - self.start, 1e-9)
        if total is None:
            return f"{what}: {done:,}, {rate:,.0f} images/s"
        return f"{what}: {done:,} of {total:,}, {rate:,.0f} images/s{self.left(done, total)}"


class Lines:
    """One plain line for each logged step, and one for each epoch."""

    def __init__(self) -> None:
        self._pace = Pace()

    def note(self, text: str) -> None:
        print(printable_lines(text), file=sys.stderr, flush=True)

    def opening(self, what: str, done: int, total: int | None) -> None:
        if not done:
            self._pace = Pace()
        elif self._pace.due() or (done == total and self._pace.said > self._pace.start):
            self.note(self._pace.line(what, done, total))

    def comparing(self, done: int, total: int) -> None:
        if not done:
            self._pace = Pace()
        elif self._pace.due():
            self.note(f"{done:,} of {total:,} cells{self._pace.left(done, total)}")

    def start(self, step: int, steps: int, epochs: int) -> None:
        done = f", {step} of them done" if step else ""
        self.note(f"{counted(steps, 'step')} in {counted(epochs, 'epoch')}{done}")

    def step(self, event: StepEvent) -> None:
        if event.logged:
            self.note(f"step {event.step}/{event.steps}  epoch {event.epoch}/{event.epochs}  {step_facts(event)}")

    def evaluating(self, split: str) -> None:
        """Says nothing: the epoch's own line follows."""

    def epoch(self, event: EpochEvent) -> None:
        self.note(epoch_line(event))


class Bars:
    """A bar over all the steps, a line above it for each epoch."""

    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._pace = Pace()
        self._task = bars.add_task("loading", total=None, facts="")

    def note(self, text: str) -> None:
        self._bars.console.print(printable_lines(text), markup=False)

    def opening(self, what: str, done: int, total: int | None) -> None:
        if not done:
            self._pace = Pace()
            self._bars.reset(self._task, total=total, description=what, facts="")
        rate = done / max(time.monotonic() - self._pace.start, 1e-9)
        self._bars.update(self._task, completed=done, facts=f"{rate:,.0f} images/s")

    def comparing(self, done: int, total: int) -> None:
        self._bars.update(self._task, total=total, completed=done, description="comparing", facts="cells")

    def start(self, step: int, steps: int, epochs: int) -> None:
        self._bars.reset(self._task, total=steps, completed=step, description=f"epoch 1/{epochs}", facts="")

    def step(self, event: StepEvent) -> None:
        description = f"epoch {event.epoch}/{event.epochs}"
        self._bars.update(self._task, completed=event.step, description=description, facts=short_facts(event))

    def evaluating(self, split: str) -> None:
        self._bars.update(self._task, description=f"evaluating {split}")

    def epoch(self, event: EpochEvent) -> None:
        self.note(epoch_line(event))


def step_facts(event: StepEvent) -> str:
    return f"loss {event.loss:.4f}  lr {event.lr:.2e}  {event.images_per_second:.0f} images/s  {size(event.peak_bytes)}"


def short_facts(event: StepEvent) -> str:
    return f"loss {event.loss:.3f} {event.images_per_second:.0f} img/s {size(event.peak_bytes)}"


def epoch_line(event: EpochEvent) -> str:
    parts = [f"epoch {event.epoch}/{event.epochs}", f"loss {event.train_loss:.4f}"]
    if event.val:
        parts.append(f"val {headline(event.val)}" + (" (best)" if event.best else ""))
    return "  ".join([*parts, seconds(event.seconds)])

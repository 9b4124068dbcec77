"""The images that wait for the device, in the order of their coming, and how batches are made of them."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import numpy as np

from mlx_peft.core.text import counted
from mlx_peft.serve.known import Row
from mlx_peft.serve.problems import Problem, busy
from mlx_peft.serve.settings import Settings

LONGEST_WAIT = 30
"""Seconds after which anybody is told to ask again, at most."""
ENDS = "the server is shutting down"


@dataclass(frozen=True, eq=False)
class Answers:
    """What a request's images got.

    Attributes:
        of: whom each asked: of one that was loaded anew meanwhile, the new one.
        rows: of each, logits ``(classes,)`` or features ``(dim,)``, float32.
        queue: seconds that the first of them waited.
        device: seconds of the batches in which they were.
    """

    of: Sequence[Row]
    rows: Sequence[np.ndarray]
    queue: float
    device: float


@dataclass(eq=False)
class Job:
    """The images of one request."""

    images: np.ndarray
    rows: list[Row]
    headed: bool
    deadline: float
    future: Future[Answers] = field(default_factory=Future)
    joined: float = field(default_factory=time.monotonic)
    begun: float = 0.0
    taken: int = 0
    over: int = 0
    found: list[np.ndarray] = field(default_factory=list)
    device: float = 0.0
    error: BaseException | None = None

    def answers(self) -> Answers:
        return Answers(self.rows, self.found, self.begun - self.joined, self.device)


@dataclass(frozen=True, eq=False)
class Part:
    """Images of a job that are in one batch."""

    job: Job
    first: int
    count: int

    @property
    def images(self) -> np.ndarray:
        return self.job.images[self.first : self.first + self.count]

    @property
    def rows(self) -> Sequence[Row]:
        return self.job.rows[self.first : self.first + self.count]

    def answered(self, found: Sequence[np.ndarray], seconds: float) -> None:
        self.job.found.extend(found)
        self.job.device += seconds


class Place:
    """Room for images that are still to come. It is given back where they never do."""

    def __init__(self, line: Line, images: int) -> None:
        self.images, self.taken = images, False
        self._line = line

    def __enter__(self) -> Place:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._line.leave(self)


Order = tuple[Future[Any], Callable[..., Any], tuple[Any, ...]]


class Line:
    """Who waits, and in what order; any thread may come, one takes.

    Attributes:
        open: whether anybody is taken in.
        drained: whether nobody will be any more.
        total: images that were taken in and are not yet answered.
    """

    def __init__(self, settings: Settings) -> None:
        self.open, self.total = False, 0
        self._settings = settings
        self._changed = threading.Condition(threading.Lock())
        self._jobs: deque[Job] = deque()
        self._orders: deque[Order] = deque()
        self._coming = self._waiting = 0  # images: to be decoded, and decoded
        self.drained = self._ended = self._ordered = False
        self._rate = 0.0  # images a second, of late

    # From its begin to its end.

    def begin(self) -> None:
        with self._changed:
            self.open = not self.drained

    def drain(self) -> None:
        """Takes nobody in from here on."""
        with self._changed:
            self.open, self.drained = False, True

    def end(self) -> None:
        """Once nobody waits any more there is nothing to take."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    # Whoever comes.

    def admit(self, images: int) -> Place:
        with self._changed:
            self._must_be_warm()
            if not self.open:
                raise busy(ENDS)
            if self.total + images > self._settings.queue:
                seconds = min(math.ceil(self.total / self._rate), LONGEST_WAIT) if self._rate else 1
                raise busy(f"{counted(self.total, 'image')} are waiting already: ask again later", seconds)
            self.total += images
            self._coming += images
        return Place(self, images)

    def leave(self, place: Place) -> None:
        with self._changed:
            if place.taken:
                return
            place.taken = True
            self.total -= place.images
            self._coming -= place.images
            if not self._coming:
                self._changed.notify_all()

    def join(
        self, place: Place, images: np.ndarray, rows: Sequence[Row], headed: bool, deadline: float
    ) -> Future[Answers]:
        job = Job(images, [*rows], headed, deadline)
        if place.taken or place.images != len(images) or len(rows) != len(images):
            raise Problem(500, "the place was taken for other images")
        with self._changed:
            place.taken = True
            self._coming -= len(images)
            alone = not self._jobs
            self._jobs.append(job)
            self._waiting += len(images)
            if alone or not self._coming or self._waiting >= self._settings.max_batch:
                self._changed.notify_all()
        return job.future

    def order(self, function: Callable[..., Any], *arguments: object) -> Future[Any]:
        future: Future[Any] = Future()
        with self._changed:
            self._must_be_warm()
            if self._ended:
                raise busy(ENDS)
            self._orders.append((future, function, arguments))
            self._changed.notify_all()
        return future

    def _must_be_warm(self) -> None:
        if not (self.open or self.drained):
            raise busy("the server is not warm yet")

    # The device.

    def take(self) -> list[Part] | Order | None:
        """What is next: images of a batch, or an order; None once there is nothing any more.

        Where both wait they take turns.
        """
        with self._changed:
            while True:
                if self._orders and not (self._jobs and self._ordered):
                    self._ordered = True
                    return self._orders.popleft()
                if self._jobs:
                    self._gather()
                    self._ordered = False
                    return self._filled()
                if self._ended and not self.total:
                    return None
                self._changed.wait()

    def _gather(self) -> None:
        """Waits for images that are being decoded, where the batch has room for them."""
        until = time.monotonic() + self._settings.max_delay
        while self._coming and self._waiting < self._settings.max_batch and not self._orders:
            rest = until - time.monotonic()
            if rest <= 0:
                break
            self._changed.wait(rest)

    def _filled(self) -> list[Part]:
        parts, room, now = [], self._settings.max_batch, time.monotonic()
        while self._jobs and room:
            job = self._jobs[0]
            job.begun = job.begun or now
            count = min(room, len(job.images) - job.taken)
            parts.append(Part(job, job.taken, count))
            job.taken += count
            room -= count
            self._waiting -= count
            if job.taken == len(job.images):
                self._jobs.popleft()
        return parts

    def done(self, part: Part) -> bool:
        """A part is answered, or never will be; whether that was the last of its job."""
        with self._changed:
            self.total -= part.count
            part.job.over += part.count
            if self._ended:
                self._changed.notify_all()
            return part.job.over == len(part.job.images)

    def measured(self, images: int, seconds: float) -> None:
        """How fast it goes, for whoever is to ask again."""
        rate = images / max(seconds, 1e-6)
        self._rate = rate if not self._rate else 0.9 * self._rate + 0.1 * rate

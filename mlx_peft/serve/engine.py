"""One thread that owns the device: it answers images in batches, of whatever requests and adapters are waiting.

A batch begins as soon as the device is free. It waits for more images only while some are being decoded, and at most
``max_delay``: a lone request is answered at once, and under load batches fill up by themselves while the one before is
computed.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from typing import Any, Protocol, TypeVar

import numpy as np

from mlx_peft.core.errors import UserError
from mlx_peft.serve.batches import Answers, Job, Line, Part, Place
from mlx_peft.serve.known import Row, Served
from mlx_peft.serve.problems import Problem, late, replaced, unknown
from mlx_peft.serve.served import sizes
from mlx_peft.serve.settings import Settings

Result = TypeVar("Result")


class Meter(Protocol):
    """Whoever counts."""

    def batch(self, images: int, seconds: float) -> None:
        """A batch was answered."""

    def failed(self, error: Exception) -> None:
        """The device, or what it was to compute, has failed."""


class Unmetered:
    """Nobody counts."""

    def batch(self, images: int, seconds: float) -> None:
        pass

    def failed(self, error: Exception) -> None:
        pass


class Engine:
    """See above. It answers from ``start`` to ``close``; any thread may ask.

    Args:
        served: what answers.
        settings: the limits.
        meter: told of each batch.

    Attributes:
        deliver: calls a function with its arguments in the thread that is to learn of answers, one call a batch; by
            default the device's own.
    """

    def __init__(self, served: Served, settings: Settings, meter: Meter | None = None) -> None:
        self.served, self.settings = served, settings
        self.meter: Meter = meter or Unmetered()
        self.deliver: Callable[..., Any] = lambda function, *arguments: function(*arguments)
        self.notes: Sequence[str] = ()
        self._line = Line(settings)
        self._warm: Future[None] = Future()
        self._thread = threading.Thread(target=self._work, name="device", daemon=True)

    # From its begin to its end.

    def start(self) -> Future[None]:
        """Begins to warm up; what it returns is done as soon as it is ready, or says why it will not be; it is
        cancelled where the engine is drained before."""
        self._thread.start()
        return self._warm

    @property
    def ready(self) -> bool:
        """Whether it is warm, and takes in what is asked."""
        return self._line.open

    @property
    def waiting(self) -> int:
        """Images that were taken in and are not yet answered."""
        return self._line.total

    def drain(self) -> None:
        """Takes nothing more in; what was taken in is answered."""
        self._line.drain()

    def close(self) -> None:
        """Drains, and waits until everything is answered; for a device that hangs, no longer than a drain may take."""
        self._line.drain()
        self._line.end()
        if self._thread.is_alive():
            self._thread.join(self.settings.drain)

    # What is asked.

    def admit(self, images: int) -> Place:
        """A place for so many images, before they are decoded: a context manager, to be left as soon as they are
        submitted, or will not be.

        Raises:
            Problem: 503, where there is no room, or it is not warm yet, or drains.
        """
        return self._line.admit(images)

    def submit(
        self,
        images: np.ndarray,
        rows: Sequence[Row],
        headed: bool = True,
        *,
        deadline: float | None = None,
        place: Place | None = None,
    ) -> Future[Answers]:
        """Asks for logits, or where not ``headed`` for features.

        Args:
            images: uint8 ``(images, size, size, 3)``.
            rows: whom each of them asks.
            deadline: by ``time.monotonic``, after which nobody wants the answer.
            place: that was taken for them; None: one is taken now.

        Raises:
            Problem: as ``admit``, where there is no place yet. The future's own: 404 where what was asked is gone,
                500 where the device fails, 504 behind the deadline.
        """
        deadline = time.monotonic() + self.settings.deadline if deadline is None else deadline
        return self._line.join(place or self._line.admit(len(images)), images, rows, headed, deadline)

    def order(self, function: Callable[..., Result], *arguments: object) -> Future[Result]:
        """Has the device's thread call a function between two batches; its future has what it returns or raises."""
        return self._line.order(function, *arguments)

    # The device's thread.

    def _work(self) -> None:
        try:
            self.notes = self.served.warm(sizes(self.settings.max_batch), lambda: not self._line.drained)
        except BaseException as error:
            self._line.end()
            self._warm.set_exception(error)
            return
        self._line.begin()
        if self._line.drained:
            self._warm.cancel()
        else:
            self._warm.set_result(None)
        while (work := self._line.take()) is not None:
            if isinstance(work, list):
                self._batch(work)
            else:
                self._order(*work)

    def _order(self, future: Future[Any], function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        if not future.set_running_or_notify_cancel():
            return
        try:
            result = function(*arguments)
        except BaseException as error:
            if not isinstance(error, UserError | Problem):
                self._failed(error)
            self._tell([(future, None, error)])
        else:
            self._tell([(future, result, None)])

    def _batch(self, parts: list[Part]) -> None:
        began = time.monotonic()
        parts = [part for part in parts if not self._refused(part, began)]
        if parts:
            self._answered(parts)
        count = sum(part.count for part in parts)
        if count:
            seconds = time.monotonic() - began
            self._line.measured(count, seconds)
            self.meter.batch(count, seconds)
        self._finish(parts)

    def _answered(self, parts: list[Part]) -> None:
        """Answers parts together; where that fails each by itself, so that one harms no other."""
        began = time.monotonic()
        rows = [row for part in parts for row in part.rows]
        headed = [part.job.headed for part in parts for _ in part.rows]
        try:
            images = np.concatenate([part.images for part in parts]) if len(parts) > 1 else parts[0].images
            found = self.served.answer(images, rows, headed)
        except BaseException as error:
            if len(parts) > 1:
                for part in parts:
                    self._answered([part])
                return
            self._failed(error)
            parts[0].job.error = Problem(500, "the device could not answer this; the server's log says why")
            return
        seconds, at = time.monotonic() - began, 0
        for part in parts:
            part.answered(found[at : at + part.count], seconds)
            at += part.count

    def _failed(self, error: BaseException) -> None:
        self.meter.failed(error if isinstance(error, Exception) else RuntimeError(type(error).__name__))

    def _refused(self, part: Part, now: float) -> bool:
        """Whether nobody waits for a part any more, or what it asks is gone."""
        job = part.job
        if job.error is not None or job.future.cancelled():
            job.error = job.error or late(self.settings.deadline)
        elif now > job.deadline:
            job.error = late(self.settings.deadline)
        else:
            for at in range(part.first, part.first + part.count):
                self._found_again(job, at)
        if job.error is None:
            return False
        self._finish([part])
        return True

    def _found_again(self, job: Job, at: int) -> None:
        """Whom an image asks, as it is now: it may have been let go, or loaded anew, since the image was decoded."""
        row = job.rows[at]
        if row is None or (now := self.served.get(row.name)) is row:
            return
        if now is None:
            job.error = unknown(row.name)
        elif now.recipe != row.recipe or bool(now.classes) != bool(row.classes):
            job.error = replaced(row.name)
        else:
            job.rows[at] = now

    def _finish(self, parts: Sequence[Part]) -> None:
        done = [part.job for part in parts if self._line.done(part)]
        self._tell([(job.future, job.answers(), job.error) for job in done])

    def _tell(self, told: list[tuple[Future[Any], Any, BaseException | None]]) -> None:
        if told:
            try:
                self.deliver(_set, told)
            except RuntimeError:  # the loop to which it would be told is over
                _set(told)


def _set(told: Sequence[tuple[Future[Any], Any, BaseException | None]]) -> None:
    for future, result, error in told:
        with suppress(InvalidStateError):  # cancelled: nobody waits
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)

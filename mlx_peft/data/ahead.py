"""Batches read by threads, a few ahead of the one that is being consumed."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from mlx_peft.config.data import Data
from mlx_peft.data.batch import Batch
from mlx_peft.data.dataset import Split
from mlx_peft.data.filling import CHUNK, Chunk, Fill
from mlx_peft.data.hands import hands
from mlx_peft.data.mix import Targets
from mlx_peft.data.order import occurrences
from mlx_peft.data.rows import Rows
from mlx_peft.data.unread import Broken, check_share

PREFETCH = 2
"""So many batches are prepared ahead of the one that is being consumed."""


def all_needed(count: int) -> np.ndarray:
    """Of so many images of a batch those that are read, bool ``(count,)``: every one."""
    return np.ones(count, bool)


def left_alone(batch: Batch, step: int) -> None:
    """What is done to a batch once it is whole: nothing."""


@dataclass(frozen=True, eq=False)
class Plan:
    """What the batches of a split are made of.

    order: int64, the image of each row, batch after batch; rows: what becomes of an image. Of so many images of a batch
    those are read that are ``needed``; ``finish`` is called on each whole batch and its number.
    """

    split: Split
    order: np.ndarray
    targets: Targets
    rows: Rows
    config: Data
    needed: Callable[[int], np.ndarray] = all_needed
    finish: Callable[[Batch, int], None] = left_alone

    def batches(self, numbers: range) -> Iterator[Batch]:
        """Batches, by their numbers.

        However the consumer leaves, the threads end when the iterator is closed, once each has done what it is doing.
        """
        size, copies = self.rows.size(self.split.images), occurrences(self.order)
        made_by = hands(self.config, self.rows, size)
        pending: deque[tuple[int, Batch, list[Future[list[str | None]]]]] = deque()
        pool = ThreadPoolExecutor(made_by.threads, thread_name_prefix="mlx-peft-data")
        lost = 0
        try:
            steps = iter(numbers)
            while True:
                while len(pending) <= PREFETCH and (step := next(steps, None)) is not None:
                    pending.append((step, *self._begun(step, copies, size, made_by.fill, pool)))
                if not pending:
                    return
                number, whole, futures = pending.popleft()
                reasons = [reason for future in futures for reason in future.result()]
                batch = whole
                if any(reasons):
                    batch = self._left_out(whole, reasons)
                    lost += whole.count - batch.count
                    check_share(self.split.name, lost, batch.count, whole.count, len(self.order), reasons)
                self.finish(batch, number)
                yield batch
        finally:
            # Not waited for: an iterator that was left behind is closed by the garbage collector, in whatever thread
            # that happens to run, and a thread that is only beginning would wait for a lock of its own.
            pool.shutdown(wait=False, cancel_futures=True)

    def _begun(
        self, step: int, copies: np.ndarray, size: tuple[int, int], fill: Fill, pool: ThreadPoolExecutor
    ) -> tuple[Batch, list[Future[list[str | None]]]]:
        """A batch, and what puts its images in their places."""
        split, batch_size = self.split, self.targets.batch_size
        whole = slice(step * batch_size, (step + 1) * batch_size)
        indices, numbers = self.order[whole], copies[whole]
        images = np.zeros((batch_size, *size, 3), np.uint8)
        batch = Batch(images, self.targets.batch(indices), indices, self.targets.weight(indices))
        places = np.flatnonzero(self.needed(len(indices)))
        futures = []
        for first in range(0, len(places), CHUNK):
            some = places[first : first + CHUNK]
            tolerant = split.unread is not None
            chunk = Chunk(self.rows, split.images, indices[some], indices[some], numbers[some], tolerant)
            futures.append(pool.submit(fill, chunk, [images[place] for place in some]))
        return batch, futures

    def _left_out(self, batch: Batch, reasons: list[str | None]) -> Batch:
        """The batch without the images that are not there for a reason, which are remembered: the others move up."""
        unread, targets = self.split.unread, self.targets
        assert unread is not None
        there = np.array([reason is None for reason in reasons])
        for row, reason in zip(batch.rows.tolist(), reasons, strict=True):
            if reason is not None:
                unread.add(Broken(self.split.name, self.split.images.identifiers[row], reason))
        images, rows = np.zeros_like(batch.images), batch.rows[there]
        images[: len(rows)] = batch.images[: batch.count][there]
        return Batch(images, targets.batch(rows), rows, targets.weight(rows))

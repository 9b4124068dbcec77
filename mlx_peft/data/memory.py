"""The memory that decoding takes, shared out among threads: together they stay within one budget."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache

from mlx_peft.data.limits import limits


class Budget:
    """So many bytes. Who needs more than there are gets all of them, once everybody else is done."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.most = 0
        """Bytes that were given out at once, so far."""
        self._used = 0
        self._changed = threading.Condition()
        self._waiting: deque[object] = deque()
        """In the order of their coming, so that small requests do not starve a large one."""
        self._thread = threading.local()

    @contextmanager
    def decoding(self, peak: int, kept: int) -> Iterator[None]:
        """Waits until `peak` bytes are free and takes them; `kept` of them stay taken until ``one_image`` ends.

        A thread that decodes its next image is taken to be done with the last: it never waits for what it holds itself.
        """
        self._give_back_kept()
        share, rest = min(peak, self.total), 0
        self.take(share)
        try:
            yield
            if getattr(self._thread, "keeps", False):
                self._thread.kept = rest = min(kept, share)
        finally:
            self.give_back(share - rest)

    @contextmanager
    def one_image(self) -> Iterator[None]:
        """What the thread decodes within it counts, with the bytes that are left of it, to its end."""
        self._thread.keeps = True
        try:
            yield
        finally:
            self._thread.keeps = False
            self._give_back_kept()

    def take(self, share: int) -> None:
        """Waits until so many bytes, at most ``total``, are free, and takes them."""
        with self._changed:
            if self._waiting or self._used + share > self.total:
                turn = object()
                self._waiting.append(turn)
                try:
                    self._changed.wait_for(lambda: self._waiting[0] is turn and self._used + share <= self.total)
                finally:
                    self._waiting.remove(turn)
                    self._changed.notify_all()
            self._used += share
            self.most = max(self.most, self._used)

    def give_back(self, share: int) -> None:
        """So many bytes are free again."""
        with self._changed:
            self._used -= share
            if self._waiting:
                self._changed.notify_all()

    def _give_back_kept(self) -> None:
        if kept := getattr(self._thread, "kept", 0):
            self._thread.kept = 0
            self.give_back(kept)


_lent: list[Budget] = []


@cache
def budget() -> Budget:
    """That of this process."""
    return _lent[0] if _lent else Budget(limits().memory)


def lend(budget_of_another: Budget) -> None:
    """This process decodes for another, and keeps to what that one gives it."""
    _lent[:] = [budget_of_another]
    budget.cache_clear()


# A forked process has none of its parent's threads, which would never give back what they have taken.
os.register_at_fork(after_in_child=budget.cache_clear)


def one_image() -> AbstractContextManager[None]:
    """``Budget.one_image`` of this process's budget."""
    return budget().one_image()

"""Processes of a run that are threads of this one, on the backend that has no framework."""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

import fake_backend
import pytest
from hanging import HUNG

from mlx_peft.core.world import ALONE, Lost, World

ENDED = ("ended", b"")
"""What a thread says last."""


class Played:
    """See ``mlx_peft.core.world.World``. An assertion fails where not all make the same kind of exchange."""

    def __init__(self, rank: int, lines: list[list[SimpleQueue[tuple[str, bytes]]]]) -> None:
        self.rank, self.size, self.lines = rank, len(lines), lines
        """Of each thread a line to each."""

    def say(self, kind: str, content: bytes) -> None:
        for line in self.lines[self.rank]:
            line.put((kind, content))

    def exchange(self, kind: str, content: bytes) -> list[bytes]:
        self.say(kind, content)
        heard = [line[self.rank].get(timeout=HUNG) for line in self.lines]
        if ENDED in heard:
            raise Lost("its thread has ended")
        assert {other for other, _ in heard} == {kind}
        return [content for _, content in heard]

    def any(self, flag: bool) -> bool:
        return any(self.exchange("any", b"1" if flag else b""))

    def tell(self, content: bytes) -> bytes:
        return self.exchange("tell", content)[0]

    def gather(self, content: bytes) -> list[bytes]:
        return self.exchange("gather", content)


def play(patch: pytest.MonkeyPatch, work: Callable[[World], object], size: int = 2) -> list[Any]:
    """What comes of the work in each of so many processes, by rank: what it returns, or raises."""
    here, ends = threading.local(), [object()] * size
    lines: list[list[SimpleQueue[tuple[str, bytes]]]] = [[SimpleQueue() for _ in range(size)] for _ in range(size)]
    patch.setattr(fake_backend, "world", lambda: getattr(here, "world", ALONE))

    def process(rank: int) -> None:
        here.world = Played(rank, lines)
        try:
            ends[rank] = work(here.world)
        except BaseException as error:
            ends[rank] = error
        finally:
            here.world.say(*ENDED)

    threads = [threading.Thread(target=process, args=[rank]) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return ends

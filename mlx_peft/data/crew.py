"""Processes that make rows, where Python's lock would let threads wait for one another: the same rows.

They are started anew, not forked, and import little. Each has some memory in common with this process, which has no
name anywhere, so that nothing of it is left behind by whoever is killed; a thread of this process hands it a chunk at a
time, and copies the rows out. They stay from epoch to epoch and are shared by all readers of the process; left alone
for a while they end by themselves, and are started again when they are wanted.
"""

from __future__ import annotations

import io
import mmap
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from queue import LifoQueue
from typing import IO, Any

import numpy as np

from mlx_peft.core.errors import UserError
from mlx_peft.data import worker
from mlx_peft.data.filling import CHUNK, Chunk
from mlx_peft.data.limits import limits
from mlx_peft.data.memory import Budget

ROOM = 2**24
"""Bytes of the memory that a process shares: a chunk of images of 836 pixels. What is not used takes no memory."""

IDLE = 60
"""After so many seconds without a chunk a process ends; when it is wanted it is started again."""

START = (
    "import sys; sys.path[:] = sys.argv[5:]; from mlx_peft.data.worker import serve; serve(*map(int, sys.argv[1:5]))"
)
"""What a process runs. (multiprocessing would have it import the user's own program first.)"""


GONE = EOFError, OSError, pickle.UnpicklingError
"""What is raised where a process has ended, perhaps amid an answer."""


class Worker:
    """A process that makes rows, and the memory that it shares; started when it is first wanted. For one thread."""

    def __init__(self, room: int, budget: Budget, own: int) -> None:
        """Raises UserError where there is no such memory."""
        self._budget, self._own = budget, own
        try:
            self._memory = _nameless(room)
            self._rows = np.frombuffer(mmap.mmap(self._memory, room), np.uint8)
        except OSError as error:
            raise UserError(
                f"data.workers: there are no {room:,} bytes to share ({error.strerror or error})"
            ) from error
        weakref.finalize(self, os.close, self._memory)
        self.process: subprocess.Popen[bytes] | None = None
        """None where it is not needed, or no longer there."""

    def fill(self, chunk: Chunk, out: Sequence[np.ndarray]) -> list[str | None]:
        """As ``filling.fill``, in the process. Raises UserError too where the process was killed."""
        few = replace(chunk, images=chunk.images.take(chunk.places).portable(), places=np.arange(len(out)))
        size = out[0].shape[:2]
        kind, *content = self._asked(pickle.dumps((few, size, _here()), pickle.HIGHEST_PROTOCOL))
        if kind == worker.REFUSED:
            raise content[0]
        if kind == worker.FAILED:
            error, where = content
            raise RuntimeError(f"a process that makes rows failed: {error}\n{where}")
        made = self._rows[: len(out) * out[0].size].reshape(len(out), *out[0].shape)
        for row, place in zip(made, out, strict=True):
            place[...] = row
        reasons: list[str | None] = content[0]
        return reasons

    def _asked(self, request: bytes) -> tuple[Any, ...]:
        """What the process answers. One that had nothing to do, and has ended, is started again."""
        process = self.process
        if process is not None:
            with suppress(*GONE):
                return self._answer(process, request)
            if self._left(process):
                raise _gone(process)
        process = self._started()
        try:
            return self._answer(process, request)
        except GONE as error:
            self._left(process)
            raise _gone(process) from error

    def _left(self, process: subprocess.Popen[bytes]) -> int:
        """The status of a process that has ended, of which nothing is kept."""
        self.process = None
        self._end()
        return process.returncode

    def _answer(self, process: subprocess.Popen[bytes], request: bytes) -> tuple[Any, ...]:
        """The last thing that is said of a request. Raises EOFError or OSError where the process has ended."""
        assert process.stdin is not None
        _write(process.stdin, request)
        lent = 0
        try:
            while True:
                kind, *content = pickle.load(self._answers)
                if kind == worker.TAKE:
                    self._budget.take(content[0])
                    lent += content[0]
                    _write(process.stdin, b"+")
                elif kind == worker.GIVE:
                    self._budget.give_back(content[0])
                    lent -= content[0]
                else:
                    return kind, *content
        finally:
            self._budget.give_back(lent)

    def _started(self) -> subprocess.Popen[bytes]:
        numbers = self._memory, self._own, self._budget.total, IDLE
        try:
            self.process = process = subprocess.Popen(
                [sys.executable, "-c", START, *map(str, numbers), *sys.path],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                bufsize=0,  # else a fork of this process would hold, and write again, what is about to be written
                pass_fds=(self._memory,),
                env=os.environ | {"OMP_NUM_THREADS": "1"},
                start_new_session=True,  # Ctrl-C is for its owner, which may want a last batch
            )
        except OSError as error:
            reason = error.strerror or error
            raise UserError(f"data.workers: a process that decodes images cannot be started ({reason})") from error
        self._end = weakref.finalize(self, _ended, process)
        assert isinstance(process.stdout, io.FileIO)
        self._answers = io.BufferedReader(process.stdout)
        return process


class Crew:
    """So many processes. A thread that has a chunk takes whichever is free."""

    def __init__(self, count: int, room: int) -> None:
        """Raises UserError where there is no memory to share."""
        self.count, self.room = count, room
        # Half of what decoding may take is shared out; for larger images they ask, and share the other half.
        budget, own = Budget(limits().memory // 2), limits().memory // (2 * count)
        self.workers = [Worker(room, budget, own) for _ in range(count)]
        self._free: LifoQueue[Worker] = LifoQueue()  # of few threads few processes are started
        for one in self.workers:
            self._free.put(one)

    def fill(self, chunk: Chunk, out: Sequence[np.ndarray]) -> list[str | None]:
        """As ``filling.fill``, in one of the processes; at once where no more threads than processes call it."""
        free = self._free.get()
        try:
            return free.fill(chunk, out)
        finally:
            self._free.put(free)


_lock = threading.Lock()
_crews: list[Crew] = []
"""That of this process, once it has one."""


def crew(count: int, size: tuple[int, int]) -> Crew:
    """The processes of this process, so many or more, with room for a chunk of rows of that size (height, width).

    Who still has another crew keeps it as long. Raises UserError where there is no memory to share.
    """
    room = CHUNK * size[0] * size[1] * 3
    with _lock:
        if not (_crews and _crews[0].count >= count and _crews[0].room >= room):
            _crews[:] = [Crew(count, max(ROOM, room))]
        return _crews[0]


os.register_at_fork(after_in_child=_crews.clear)  # a forked process has none of its parent's


def _nameless(size: int) -> int:
    """The descriptor of so many bytes of memory, zero, of which no name is to be found, and nothing stays."""
    if hasattr(os, "memfd_create"):  # not on macOS, nor where Python was built for old systems
        file = os.memfd_create("rows")
    else:
        with tempfile.TemporaryFile() as unnamed:
            file = os.dup(unnamed.fileno())
    os.truncate(file, size)
    return file


def _here() -> str | None:
    """The folder that relative paths are of; None where it is gone."""
    try:
        return os.getcwd()
    except OSError:
        return None


def _write(pipe: IO[bytes], content: bytes) -> None:
    """All of it, to a pipe that holds nothing back."""
    rest = memoryview(content)
    while rest:
        rest = rest[pipe.write(rest) :]


def _gone(process: subprocess.Popen[bytes]) -> UserError:
    status = process.returncode
    if status >= 0:
        return UserError(f"a process that decodes images ended with status {status}; what it said stands before this")
    known = {one.value: one.name for one in signal.Signals}
    lack = "where it was for lack of memory, fewer data.threads need less of it"
    if -status == signal.SIGBUS:
        lack = f"there was no room left for the memory that it shares, in {tempfile.gettempdir()} or in the machine"
    return UserError(
        f"a process that decodes images was ended by {known.get(-status, f'signal {-status}')}: {lack}; with "
        "data.workers: threads there are no such processes"
    )


def _ended(process: subprocess.Popen[bytes]) -> None:
    """Has a process end, and waits for the chunk at hand."""
    for pipe in (process.stdin, process.stdout):
        assert pipe is not None
        with suppress(OSError):  # what could not be written
            pipe.close()
    process.wait()

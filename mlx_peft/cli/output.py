"""Standard output and standard error that outlive their reader: what cannot be written is dropped, and remembered.

A run of a week should not end because the pipe that it prints to was closed, the disk under its log is full, or the
terminal is gone. A command does its work to the end; its exit status says where an answer was lost.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import TextIO

from mlx_peft.core.errors import UserError

NOTE = "output-lost.txt"
"""The file of a run's folder that says what was dropped, once."""


class Tolerant(io.RawIOBase):
    """The file behind a stream. What it refuses is taken as written; the next try may succeed, on a disk with room."""

    def __init__(self, file: int) -> None:
        self._file = io.FileIO(file, "w", closefd=False)
        self.lost: OSError | None = None
        """Why the first bytes were dropped that were; None where none were."""
        self.dropped: Callable[[OSError], object] = lambda error: None
        """Called whenever bytes are dropped."""

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._file.fileno()

    def isatty(self) -> bool:
        return self._file.isatty()

    def write(self, data: object, /) -> int:
        size = memoryview(data).nbytes  # type: ignore[arg-type]
        try:
            written = self._file.write(data)  # type: ignore[arg-type]
            if written is None:  # it does not block, and its reader is too slow
                raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        except OSError as error:
            self.lost = self.lost or error
            self.dropped(error)
            return size
        return written


@contextmanager
def tolerant() -> Iterator[None]:
    """Has both streams drop what cannot be written while the block runs. A letter that one lacks is an escape."""
    with ExitStack() as stack:
        for name, number in (("stdout", 1), ("stderr", 2)):
            before = getattr(sys, name)
            if (stream := _over(before, number)) is not None:
                setattr(sys, name, stream)
                stack.callback(setattr, sys, name, before)
                stack.callback(stream.flush)
        yield


def _over(stream: TextIO | None, number: int) -> io.TextIOWrapper | None:
    """A stream that drops what cannot be written, in the place of one; None of what is no file's."""
    if stream is None:  # closed by whoever started the process: no other file may come by its number
        with suppress(OSError):
            while os.open(os.devnull, os.O_RDWR) < number:
                pass
        raw = Tolerant(number)
        raw.lost = OSError(errno.EBADF, os.strerror(errno.EBADF))
        return io.TextIOWrapper(io.BufferedWriter(raw), "utf-8", "backslashreplace")
    if not isinstance(stream, io.TextIOWrapper):
        return None
    try:
        raw = Tolerant(stream.fileno())
    except OSError:  # one in memory
        return None
    stream.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        stream.encoding,
        "backslashreplace",
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


def raw(stream: TextIO | None) -> Tolerant | None:
    """The file behind a stream of ``tolerant``, with all that was printed handed to it; None of another stream."""
    behind = getattr(getattr(stream, "buffer", None), "raw", None)
    if stream is None or not isinstance(behind, Tolerant):
        return None
    stream.flush()
    return behind


@contextmanager
def kept_elsewhere() -> Iterator[None]:
    """What the block prints stands in a file too: where it cannot be printed, the command has not failed."""
    out = raw(sys.stdout)
    lost = out.lost if out is not None else None
    yield
    if (out := raw(sys.stdout)) is not None:
        out.lost = lost


@contextmanager
def said_beside(written: Path) -> Iterator[None]:
    """Has the folder of a file say, once that file is there, that something which the block printed was dropped."""
    noted = False

    def say(error: OSError) -> None:
        nonlocal noted
        if noted or not written.exists():
            return
        noted = True
        when = datetime.now().astimezone().isoformat(timespec="seconds")
        text = f"{when}: what was printed could not be written ({error.strerror}). It was dropped; the work went on.\n"
        with suppress(OSError), open(written.with_name(NOTE), "a", encoding="utf-8") as file:
            file.write(text)

    streams = [found for stream in (sys.stdout, sys.stderr) if (found := raw(stream)) is not None]
    before = [found.dropped for found in streams]
    for found in streams:
        found.dropped = say
    try:
        yield
    finally:
        for found, usual in zip(streams, before, strict=True):
            if found.lost is not None:
                say(found.lost)
            found.dropped = usual


def reader_gone() -> bool:
    """Whether the reader of standard output left before the end: ``| head -1`` had what it wanted."""
    out = raw(sys.stdout)
    return out is not None and isinstance(out.lost, BrokenPipeError)


def check_output() -> None:
    """Raises UserError where what was printed to standard output could not be written."""
    out = raw(sys.stdout)
    if out is not None and out.lost is not None:
        raise UserError(f"standard output cannot be written: {out.lost.strerror}")

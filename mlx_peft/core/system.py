"""What Windows has by another name, or lacks: locks on files, flags of opening, reading at a place in a file.

Everything else of the package asks here, and runs on Linux, macOS and Windows alike. On Windows it is unverified.
"""

from __future__ import annotations

import io
import os
import signal
import sys
import time

WINDOWS = sys.platform == "win32"

NOFOLLOW: int = getattr(os, "O_NOFOLLOW", 0)
"""A link is refused. Windows has no such flag, and lets nobody make links but administrators and developers."""
NONBLOCK: int = getattr(os, "O_NONBLOCK", 0)
CLOEXEC: int = getattr(os, "O_CLOEXEC", 0)
BINARY: int = getattr(os, "O_BINARY", 0)

HANGUP: tuple[signal.Signals, ...] = (signal.SIGHUP,) if hasattr(signal, "SIGHUP") else ()
"""What a terminal sends that is closed."""

KILLED = int(getattr(signal, "SIGKILL", 9))
"""The number of the signal that no process can refuse."""

LOCKED = 2**40
"""Windows locks bytes, and nobody else may read those: one far behind the end of any file of ours is taken."""

AGAIN = 0.1
"""Seconds until Windows is asked again for a lock that is waited for."""


def lock(file: int, *, wait: bool = False) -> None:
    """Locks an open file for this process until it is closed, or the process ends, however it does.

    Raises BlockingIOError where another has it and it is not to be waited for; another OSError where there are no
    locks.
    """
    if sys.platform == "win32":
        _lock_byte(file, wait)
    else:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))


def _lock_byte(file: int, wait: bool) -> None:
    import msvcrt

    place = os.lseek(file, 0, os.SEEK_CUR)
    try:
        while True:
            os.lseek(file, LOCKED, os.SEEK_SET)
            try:
                msvcrt.locking(file, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined,unused-ignore]
                return
            except PermissionError as error:
                if not wait:
                    raise BlockingIOError(error.errno, error.strerror) from error
            time.sleep(AGAIN)
    finally:
        os.lseek(file, place, os.SEEK_SET)


def read_at(file: int, count: int, place: int) -> bytes:
    """So many bytes of an open file from a place on; fewer at its end. Windows moves the file's position."""
    if hasattr(os, "pread"):
        return os.pread(file, count, place)
    os.lseek(file, place, os.SEEK_SET)
    return os.read(file, count)


def read_into(file: int, buffer: memoryview) -> int:
    """Fills a buffer from where an open file stands, as far as one reading goes; the number of bytes, 0 at its end."""
    if hasattr(os, "readv"):
        return os.readv(file, [buffer])
    return io.FileIO(file, closefd=False).readinto(buffer)


def write_at(file: int, content: bytes, place: int) -> int:
    """Writes into an open file from a place on; the number of bytes. Windows moves the file's position."""
    if hasattr(os, "pwrite"):
        return os.pwrite(file, content, place)
    os.lseek(file, place, os.SEEK_SET)
    return os.write(file, content)

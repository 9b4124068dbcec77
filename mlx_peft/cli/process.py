"""The process of a command: what it prints to, and how it ends when it is asked to."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from mlx_peft.core.signals import SUPERVISORS, end, handled

CLOSED = 141
"""The exit status where the reader of standard output is gone: a shell's for SIGPIPE."""


def run(program: str, backend: str) -> None:
    """Runs the command of this process's arguments, on a backend unless they say otherwise, and ends the process."""
    with prepared():
        from mlx_peft.cli.app import app

        try:
            app(prog_name=program, obj=backend)
        finally:
            _flush()


@contextmanager
def prepared() -> Iterator[None]:
    """Lets the block print any text, and lets SIGTERM and SIGHUP end it as an error would: nothing is left half-made.

    A letter that the encoding of a stream lacks is written as an escape.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    with handled(end, SUPERVISORS):
        yield


def _flush() -> None:
    """What is still to be printed. A reader that is gone (``| head -1``) had what it wanted."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        # Or Python tries again as it ends, and complains.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            print(f"error: standard output cannot be written: {error.strerror}", file=sys.stderr)
            raise SystemExit(2) from None
        raise SystemExit(CLOSED) from None

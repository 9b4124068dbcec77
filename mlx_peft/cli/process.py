"""The process of a command: what it prints to, and how it ends when it is asked to."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from mlx_peft.cli.completing import asked
from mlx_peft.cli.output import check_output, reader_gone, tolerant
from mlx_peft.core import threads
from mlx_peft.core.errors import UserError
from mlx_peft.core.signals import SUPERVISORS, end, handled

CLOSED = 141
"""The exit status where the reader of standard output is gone: a shell's for SIGPIPE."""


def run(program: str, backend: str) -> None:
    """Runs the command of this process's arguments, on a backend unless they say otherwise, and ends the process.

    Its status is the command's own; where that is 0 and an answer could not be printed, 141 if its reader is gone,
    else 2.
    """
    with prepared():
        from mlx_peft.cli.app import app

        if asked(program):
            from typer.completion import completion_init  # type: ignore[attr-defined]

            completion_init()
        try:
            app(prog_name=program, obj=backend)
        except SystemExit as done:
            if done.code:
                raise
        _answered()


@contextmanager
def prepared() -> Iterator[None]:
    """Lets the block print any text to whatever is there, and lets SIGTERM and SIGHUP end it as an error would: nothing
    is left half-made. Settles with how many threads it computes."""
    threads.settle()
    with tolerant(), handled(end, SUPERVISORS):
        yield


def _answered() -> None:
    if reader_gone():
        raise SystemExit(CLOSED)
    try:
        check_output()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None

"""Processes that take turns, so that what else the machine does falls on all alike, and that share nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

from mlx_peft.core.errors import UserError

READY = "ready"
"""The first line of a worker: it may be asked from here on."""


class Worker:
    """A process that answers: a line of JSON in, a line of JSON out.

    Args:
        name: of what it computes, for a person.
        process: see ``serve``.
    """

    def __init__(self, name: str, process: subprocess.Popen[str]) -> None:
        self.name = name
        self._process = process

    def ask(self, request: Any) -> Any:
        """What it answers. Raises UserError where it died."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # of one that died before it was asked
            print(json.dumps(request), file=self._process.stdin, flush=True)
        return self._answer("died")

    def wait(self) -> None:
        """Until it can be asked. Raises UserError where it cannot be started."""
        self._answer("could not be started")

    def _answer(self, otherwise: str) -> Any:
        assert self._process.stdout is not None
        if not (line := self._process.stdout.readline()):
            raise UserError(f"bench: {self.name} {otherwise}; its own message is above")
        return json.loads(line)


@contextmanager
def workers(module: str, names: Iterable[str], settings: Any) -> Iterator[dict[str, Worker]]:
    """A worker for each name, ready, by name; at the end there is none any more.

    Args:
        module: which is run as a program: its arguments are the name, and the settings as JSON.
    """
    with ExitStack() as stack:
        found = {}
        for name in names:
            command = [sys.executable, "-m", module, name, json.dumps(settings)]
            process = stack.enter_context(
                subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            )
            stack.callback(process.kill)  # before it is waited for
            found[name] = Worker(name, process)
            found[name].wait()  # one after the other: what is prepared is timed neither
        yield found


def serve(prepare: Callable[[], Callable[[Any], Any]]) -> None:
    """The program of a worker: it prepares, and answers each request with what it prepared until there is none more.

    What is printed meanwhile goes to standard error.
    """
    replies, sys.stdout = sys.stdout, sys.stderr
    try:
        answer = prepare()
        print(json.dumps(READY), file=replies, flush=True)
        for line in sys.stdin:
            print(json.dumps(answer(json.loads(line))), file=replies, flush=True)
    finally:
        sys.stdout = replies


def seconds(action: Callable[[], object]) -> float:
    """How long a call takes."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start

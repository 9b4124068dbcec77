"""Where runs are made: an executor gives each a process of its own, here on this machine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from mlx_peft.config.tuning import Resources
from mlx_peft.core import system, threads
from mlx_peft.core.json_io import to_json
from mlx_peft.studies.ready import SuiteRun

USER_ERROR, INTERRUPTED = 2, 130
"""A worker exits with these where the user is to blame, and where it was asked to stop."""

Order = dict[str, Any]


@dataclass(frozen=True)
class Reply:
    """What became of the process of a run.

    Attributes:
        status: its exit status; negative, the number of the signal that ended it.
        text: what it wrote to standard output.
        seconds: that it lived.
    """

    status: int
    text: str = ""
    seconds: float = 0.0

    @property
    def died(self) -> bool:
        """Whether something ended it that knows nothing of it."""
        return self.status < 0

    def explained(self, log: Path | None) -> str:
        """Why it failed: its own words, or how it ended."""
        if self.status == USER_ERROR and (said := _error_in(self.text)) is not None:
            return said
        if self.died:
            hint = ", perhaps for want of memory" if -self.status == system.KILLED else ""
            return f"its process was ended by {_called(-self.status)}{hint}"
        return f"its process ended with status {self.status}; what it said is {'above' if log is None else f'in {log}'}"


def _error_in(text: str) -> str | None:
    """What a worker says; None where that is not an answer of one: it may have come to its end otherwise."""
    try:
        return str(json.loads(text)["error"])
    except (ValueError, TypeError, KeyError, RecursionError):
        return None


def _called(number: int) -> str:
    """``SIGKILL``; a real-time signal has no name."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


class Executor(Protocol):
    """Makes runs, several at once."""

    @property
    def room(self) -> int | None:
        """How many at once; None where whoever hands out the hosts decides."""
        ...

    def submit(self, order: Order, resources: Resources, log: Path | None) -> Future[Reply]:
        """Has a run made. ``log`` is where the process says what it does; None: where this one does."""
        ...

    def hand_on(self, number: int) -> None:
        """Hands a signal on to all that are at work. It is called by the handler of one."""
        ...


def order_of(run: SuiteRun) -> Order:
    """What a worker is told, in one line of JSON.

    ``{"experiment": ..., "beside": ..., "test": ..., "out": ...}`` to train, resuming what it finds in the folder, and
    to test where that is asked for; ``{"step": ..., "of": ..., "out": ...}`` to make something of the run in a folder.
    """
    if run.step is not None and run.of is not None:
        step = run.step.model_dump(mode="json", exclude_none=True)
        return {"step": step, "of": str(run.of.folder.path), "out": str(run.folder.path)}
    beside = None if run.beside is None else str(run.beside)
    experiment = run.experiment.model_dump(mode="json")
    return {"experiment": experiment, "beside": beside, "test": run.tests, "out": str(run.folder.path)}


def work(
    command: Sequence[str],
    order: Order,
    log: Path | None,
    relay: Relay,
    environment: Mapping[str, str],
    directory: str | None = None,
) -> Reply:
    """One run in its process, to its end; in a directory, if not in this one's.

    ``command`` reads an order in one line. Where its input ends, this process is gone, and it stops. It writes
    ``{"error": ...}`` before it ends with ``USER_ERROR``, and ends with ``INTERRUPTED`` where it was asked to stop.
    """
    began = time.monotonic()
    with ExitStack() as stack:
        said = None if log is None else stack.enter_context(open(log, "ab"))
        # In a session of its own: from a terminal, Ctrl-C would reach both, and the relay's would be the second one,
        # which does not stop a run but kills it.
        process = stack.enter_context(
            subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=said,
                text=True,
                start_new_session=True,
                env=dict(environment),
                cwd=directory,
            )
        )
        stack.enter_context(relay.to(process))
        assert process.stdin and process.stdout
        try:
            process.stdin.write(f"{to_json(order, indent=None, ascii=True)}\n")
            process.stdin.flush()
        except BrokenPipeError:  # it ended at once, and its status says why
            with suppress(BrokenPipeError):
                process.stdin.close()
            process.stdin = None
        text = process.stdout.read()
        process.wait()
    return Reply(process.returncode, text, time.monotonic() - began)


class Relay:
    """Hands signals on to the processes that are at work, and remembers that one came."""

    def __init__(self) -> None:
        self.requested = False
        self._processes: dict[int, subprocess.Popen[str]] = {}

    @contextmanager
    def to(self, process: subprocess.Popen[str]) -> Iterator[None]:
        """Signals go to this process too while the block runs; one that came just before it goes there first."""
        self._processes[process.pid] = process
        try:
            if self.requested:
                process.terminate()
            yield
        finally:
            del self._processes[process.pid]

    def hand_on(self, number: int) -> None:
        self.requested = True
        for process in list(self._processes.values()):
            process.send_signal(number)


class Here:
    """An executor of processes of this machine, so many at once."""

    def __init__(self, command: Sequence[str], jobs: int = 1) -> None:
        self._command, self._jobs, self._relay = command, jobs, Relay()
        self._pool = ThreadPoolExecutor(jobs, thread_name_prefix="mlx-peft-runs")

    @property
    def room(self) -> int:
        return self._jobs

    def submit(self, order: Order, resources: Resources, log: Path | None) -> Future[Reply]:
        environment = threads.shared(self._jobs) if self._jobs > 1 else os.environ
        return self._pool.submit(work, self._command, order, log, self._relay, environment)

    def hand_on(self, number: int) -> None:
        self._relay.hand_on(number)

"""Several runs one after another, each in a process of its own: none is made twice, and none ends the others."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Literal

from mlx_peft.core.json_io import to_json
from mlx_peft.core.signals import handled
from mlx_peft.studies.ready import SuiteRun
from mlx_peft.training.run import RunFolder

Status = Literal["finished", "failed", "interrupted"]
USER_ERROR, INTERRUPTED = 2, 130
"""A worker exits with these where the user is to blame, and where it was asked to stop."""


@dataclass(frozen=True)
class Outcome:
    """What became of a run."""

    run: SuiteRun
    status: Status
    error: str | None = None


def run(
    runs: Sequence[SuiteRun], out: Path, worker: Sequence[str], note: Callable[[str], None]
) -> Generator[Outcome, None, None]:
    """Makes the runs that are not finished, and says of each what became of it.

    ``worker`` is a command that reads an order in one line of JSON: ``{"experiment": ..., "beside": ..., "out": ...}``
    to train, resuming what it finds in the folder, or ``{"step": ..., "of": ..., "out": ...}`` to make something of the
    run in a folder. Where its input ends, this process is gone, and it stops. It writes ``{"error": ...}`` before it
    ends with ``USER_ERROR``, and ends with ``INTERRUPTED`` where it was asked to stop; its standard error is this
    process's.
    SIGINT, SIGTERM and SIGHUP are handed on to it and end the sweep.
    Raises UserError where another sweep works in ``out``.
    """
    with RunFolder(out).locked(), Relay().listening() as relay:
        for number, run in enumerate(runs, start=1):
            if run.folder.read_result() is not None:
                yield Outcome(run, "finished")
                continue
            if relay.requested:
                return
            if run.of is not None and run.of.folder.read_result() is None:
                yield Outcome(run, "failed", f"there is no finished {run.of.name} to make it of")
                continue
            note(f"[{number}/{len(runs)}] {run.name}")
            outcome = work(run, worker, relay)
            yield outcome
            if outcome.status == "interrupted":
                return


def work(run: SuiteRun, worker: Sequence[str], relay: Relay) -> Outcome:
    """One run in its process, to its end."""
    order: dict[str, Any] = {"out": str(run.folder.path)}
    if run.step is None or run.of is None:
        order["experiment"] = run.experiment.model_dump(mode="json")
        order["beside"] = None if run.beside is None else str(run.beside)
    else:
        order |= {"step": run.step.model_dump(mode="json"), "of": str(run.of.folder.path)}
    # In a session of its own: from a terminal, Ctrl-C would reach both, and the relay's would be the second one, which
    # does not stop a run but kills it.
    with (
        subprocess.Popen(
            worker, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
        ) as process,
        relay.to(process),
    ):
        assert process.stdin and process.stdout
        with suppress(BrokenPipeError):  # it ended at once, and its status says why
            process.stdin.write(f"{to_json(order, indent=None, ascii=True)}\n")
            process.stdin.flush()
        reply = process.stdout.read()
        process.wait()
    if process.returncode == 0 and run.folder.read_result() is not None:
        return Outcome(run, "finished")
    if process.returncode == INTERRUPTED or relay.requested:
        return Outcome(run, "interrupted")
    return Outcome(run, "failed", explain(reply, process.returncode))


def explain(reply: str, status: int) -> str:
    """Why a worker failed: its own words, or how it ended."""
    if status == USER_ERROR and reply:
        return str(json.loads(reply)["error"])
    if status < 0:
        hint = ", perhaps for want of memory" if -status == signal.SIGKILL else ""
        return f"its process was ended by {signal.Signals(-status).name}{hint}"
    return f"its process ended with status {status}; what it said is above"


class Relay:
    """Hands SIGINT, SIGTERM and SIGHUP on to the process that is at work, and remembers that one came."""

    def __init__(self) -> None:
        self.requested = False
        self._process: subprocess.Popen[str] | None = None

    @contextmanager
    def listening(self) -> Iterator[Relay]:
        """Listens while the block runs, in the main thread."""
        with handled(self._hand_on):
            yield self

    @contextmanager
    def to(self, process: subprocess.Popen[str]) -> Iterator[None]:
        """Signals go to this process while the block runs; one that came just before it goes there first."""
        self._process = process
        try:
            if self.requested:
                process.terminate()
            yield
        finally:
            self._process = None

    def _hand_on(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        if self._process is not None:
            self._process.send_signal(number)

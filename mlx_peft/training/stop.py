"""Stopping a run on request, at a point from which it can go on."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from mlx_peft.core import signals
from mlx_peft.core.errors import Command, UserError
from mlx_peft.core.world import ALONE, Lost, World, together
from mlx_peft.core.writing import DiskFull
from mlx_peft.training.run import RunFolder


def again(folder: RunFolder, *overrides: str) -> Command:
    """The command that goes on with a run from its last checkpoint, with values over its configuration."""
    return Command("to go on", ("train", str(folder.path), *overrides), {"resume": True})


class Interrupted(Exception):
    """Training was asked to stop and did, at a checkpoint. ``command`` goes on from there; a command exits with 130."""

    def __init__(self, folder: RunFolder, step: int, steps: int) -> None:
        super().__init__(f"interrupted after step {step} of {steps}")
        self.command = again(folder)
        self.folder = folder
        self.step = step


class Stopped(Exception):
    """Leaves the loop, between two batches. The loop's own: it reaches a caller as ``Interrupted``."""


class StopSignal:
    """Turns the first SIGINT, SIGTERM or SIGHUP into a request to stop.

    Those that a supervisor repeats change nothing: a checkpoint is being written. A SIGINT after the first request is a
    person's, and has its usual effect.
    """

    def __init__(self, world: World = ALONE) -> None:
        self.requested, self.world = False, world

    def check(self, fault: UserError | None = None) -> None:
        """Raises Stopped where a stop was requested, of any process of the run: all of them ask here.

        Where one of them cannot go on, for a ``fault``, all raise what ``together`` raises.
        """
        if self.world.any(self.requested or fault is not None):
            with together(self.world):
                if fault is not None:
                    raise fault
            raise Stopped

    @contextmanager
    def listening(self) -> Iterator[StopSignal]:
        """Listens while the block runs. Only the main thread can: in another, signals keep their usual effect."""
        usual: dict[int, Any] = {}  # a signal may come before it is filled

        def stop(number: int, frame: FrameType | None) -> None:
            self.requested = True
            if signals.PERSON in usual:
                signal.signal(signals.PERSON, usual[signals.PERSON])

        with signals.handled(stop) as before:
            usual |= before
            yield self


@contextmanager
def resumable(folder: RunFolder) -> Iterator[None]:
    """Adds to the message of a full disk, and of a process that is lost, that the run can go on."""
    try:
        yield
    except Lost as error:
        error.command = again(folder)
        raise
    except DiskFull as error:
        raise DiskFull(f"{error}; make room, then continue the run", arguments=("resume",)) from error

"""How much of the machine other processes take while something is measured: where it is much, nothing is recorded.

A time that was measured beside another busy process says as much of that process as of what was measured. Turns that
contenders take do not mend it: threads that wait for each other lose more than threads that do not.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from types import TracebackType

import psutil

from mlx_peft.core import cores
from mlx_peft.core.errors import UserError

QUIET = 0.1
"""The share of the processors that others may take: of two a fifth of one, which an idle desktop does not reach."""

BEFORE = 2.0
"""Seconds for which the machine is looked at before anything is measured."""

WORTH_NAMING = 0.05
"""Of one processor: a process that takes less is not named."""

IDLE = {"idle", "iowait", "guest", "guest_nice"}
"""What of a processor's time nobody takes; a guest's is counted as a user's already. What the host of a virtual machine
gives to another (``steal``) is taken by somebody."""

Around = AbstractContextManager[object]
UNWATCHED: Around = nullcontext()
"""Around what is measured where nobody is to know what others do."""


@dataclass(frozen=True)
class Reading:
    """Seconds up to now.

    Attributes:
        wall: on the clock.
        taken: that the processors, which this process may use, were busy: of them all together.
        own: of these for this process, and for what it has started.
        each: of other processes, by number and name.
    """

    wall: float
    taken: float
    own: float
    each: Mapping[tuple[int, str], float]


def read() -> Reading:
    """The reading of now."""
    usable = cores.allowed()
    processors = [
        times._asdict() for number, times in enumerate(psutil.cpu_times(percpu=True)) if not usable or number in usable
    ]
    taken = sum(seconds for times in processors for kind, seconds in times.items() if kind not in IDLE)
    me = psutil.Process()
    started = {child.pid: _seconds(child) for child in me.children(recursive=True)}
    each = {
        (process.pid, process.info["name"]): _seconds(process)
        for process in psutil.process_iter(["name"])
        if process.pid not in started and process.pid != me.pid
    }
    own = sum(os.times()[:4]) + sum(started.values())  # those that have ended are in the first
    return Reading(time.monotonic(), taken, own, each)


def _seconds(process: psutil.Process) -> float:
    """That a process has taken, and those of what it has started that it has waited for; 0 where nobody may know."""
    with suppress(psutil.Error):
        return float(sum(process.cpu_times()[:4]))
    return 0.0


class Others:
    """Around what is measured, as often as something is: how much other processes take of the machine meanwhile.

    Args:
        anyway: whether something is recorded on a busy machine too.
        reading, wait: of the machine's clocks.
    """

    def __init__(
        self,
        anyway: bool = False,
        reading: Callable[[], Reading] = read,
        wait: Callable[[float], None] = time.sleep,
    ) -> None:
        self.anyway, self._reading, self._wait = anyway, reading, wait
        self.processors = len(cores.allowed()) or os.cpu_count() or 1
        self._taken = self._wall = 0.0
        self._began: Reading | None = None

    @property
    def share(self) -> float:
        """Of the processors' time, from 0 to 1, over all that was measured."""
        return self._taken / self._wall / self.processors if self._wall else 0.0

    def __enter__(self) -> Others:
        """Raises UserError where others are busy before anything was measured."""
        if not (self.anyway or self._wall):
            before = self._reading()
            self._wait(BEFORE)
            self._must_be_quiet(before, self._reading(), "take", "")
        self._began = self._reading()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Raises UserError where others were busy meanwhile."""
        assert self._began is not None
        began, ended = self._began, self._reading()
        self._taken, self._wall = self._taken + _taken(began, ended), self._wall + ended.wall - began.wall
        if kind is None and not self.anyway:
            self._must_be_quiet(began, ended, "took", " while it was measured: nothing is recorded")

    def _must_be_quiet(self, began: Reading, ended: Reading, took: str, when: str) -> None:
        share = _taken(began, ended) / (ended.wall - began.wall) / self.processors
        if share > QUIET:
            raise UserError(
                f"other processes {took} {share:.0%} of the {self.processors} CPUs{when}{_named(began, ended)}; times "
                f"are recorded where they take {QUIET:.0%} at most: end them or wait for them, or have the times "
                "recorded with that share beside them",
                arguments=("busy",),
            )

    def __str__(self) -> str:
        """For the line above a table: ``2 CPUs, of which other processes took 1%``."""
        return f"{self.processors} CPUs, of which other processes took {self.share:.0%}"

    def facts(self) -> dict[str, float]:
        """For a document: how many processors there are, and the share of others."""
        return {"cpus": self.processors, "others_share": self.share}


def _taken(began: Reading, ended: Reading) -> float:
    """Seconds of processors that others took between two readings."""
    return max(0.0, (ended.taken - began.taken) - (ended.own - began.own))


def _named(began: Reading, ended: Reading) -> str:
    """Whoever took the most, where that is worth naming: ``, python (4711) 95% of one``."""
    shares = {
        process: (seconds - began.each.get(process, 0.0)) / (ended.wall - began.wall)
        for process, seconds in ended.each.items()
    }
    (number, name), most = max(shares.items(), key=lambda item: item[1], default=((0, ""), 0.0))
    return f", {name} ({number}) {most:.0%} of one" if most >= WORTH_NAMING else ""

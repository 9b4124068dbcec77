"""The same work for many things, shared out to processes where there is much of it."""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from mlx_peft.core import cores

Thing = TypeVar("Thing")
Result = TypeVar("Result")

_WORK: list[tuple[Callable[[Any], Any], Sequence[Any]]] = []
"""What is to be done, and with what: forked processes have it from before the fork, and are told numbers."""


MANY = 200
"""Of so many runs the work is shared out to processes, which takes longer where there is little of it."""


def processes(runs: Sequence[object]) -> int | None:
    """How many processes work on a report of runs: one, or one for each core."""
    return None if len(runs) >= MANY else 1


def each(work: Callable[[Thing], Result], things: Sequence[Thing], processes: int | None = None) -> list[Result]:
    """What the work makes of each thing, in their order.

    Args:
        processes: at most so many; None: one for each free core. Where none can be forked, as on a Mac, it is done
            here: all that the work stands on would have to be sent.
    """
    wanted = min(cores.free() if processes is None else processes, len(things))
    if wanted < 2 or sys.platform != "linux":
        return [work(thing) for thing in things]
    _WORK.append((work, things))
    try:
        with multiprocessing.get_context("fork").Pool(wanted) as pool:
            return pool.map(_one, range(len(things)), chunksize=max(1, len(things) // (16 * wanted)))
    finally:
        _WORK.pop()


def _one(number: int) -> Any:
    work, things = _WORK[-1]
    return work(things[number])

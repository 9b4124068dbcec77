"""Processes that are killed in the middle of what they do, at a place that is counted and not timed.

A life is a fork of the process that calls, which should have computed nothing and hold no thread: that is cheap, and
nothing outlives a kill. So the scripts that use this are started by the tests and do nothing else.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from itertools import count

Work = Callable[[], object]


def begin(work: Work) -> int:
    """A new life, by its number: it does the work, and ends. An error is told on standard error."""
    if child := os.fork():
        return child
    try:
        work()
    except BaseException as error:
        print(repr(error), file=sys.stderr, flush=True)
        os._exit(1)
    os._exit(0)


def killed(child: int) -> bool:
    """Waits for the end of a life: whether it was killed. An error in it is the end of this program."""
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        sys.exit("a life ended in an error")
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


def life(work: Work) -> bool:
    """A life from its beginning to its end: whether it was killed."""
    return killed(begin(work))


def each_call(seen: Callable[[int], object]) -> None:
    """Tells ``seen`` the number of each event of this process, from 0 on: calls and returns, C's as Python's."""
    numbers = count()

    def profile(*_: object) -> None:
        seen(next(numbers))

    threading.setprofile(profile)
    sys.setprofile(profile)


def die_at(event: int) -> None:
    """Arranges a SIGKILL at one of this process's events, as ``each_call`` counts them."""
    each_call(lambda number: number == event and os.kill(os.getpid(), signal.SIGKILL))


def events(work: Work) -> int:
    """How many events the work has, which is done in a life of its own."""
    read, write = os.pipe()

    def counted() -> None:
        last = 0

        def seen(number: int) -> None:
            nonlocal last
            last = max(last, number)

        each_call(seen)
        work()
        sys.setprofile(None)
        os.write(write, str(last).encode())

    assert not life(counted)
    os.close(write)
    with open(read, "rb") as pipe:
        return int(pipe.read())

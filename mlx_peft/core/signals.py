"""The signals by which a process is asked to end, handled for as long as a block runs."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

from mlx_peft.core.system import HANGUP

PERSON = signal.SIGINT
"""Ctrl-C. Whoever presses it twice means it."""

SUPERVISORS = (signal.SIGTERM, *HANGUP)
"""A supervisor or a queue sends the first; the second comes of a terminal that was closed, or whose connection was
lost. Both come repeatedly."""


@contextmanager
def handled(
    handler: Callable[[int, FrameType | None], Any], numbers: Sequence[int] = (PERSON, *SUPERVISORS)
) -> Iterator[dict[int, Any]]:
    """Has the signals handled while the block runs, which is given the handlers that they had.

    Only the main thread can: in another one nothing is changed. A SIGHUP that is ignored (``nohup``) stays so.
    """
    usual: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for number in numbers:
            before = signal.getsignal(number)
            if before is not None and not (number in HANGUP and before == signal.SIG_IGN):
                usual[number] = before
    for number in usual:
        signal.signal(number, handler)
    try:
        yield usual
    finally:
        for number, before in usual.items():
            signal.signal(number, before)


def end(number: int, frame: FrameType | None = None) -> None:
    """A handler: ends the process with status 128 + number, and what it has begun on the disk is removed on the way.

    From then on further requests of this kind are ignored: they would interrupt the removing.
    """
    for other in SUPERVISORS:
        signal.signal(other, signal.SIG_IGN)
    raise SystemExit(128 + number)

"""One thread that owns a device: whoever has something computed waits for it, in whatever thread of its own."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from mlx_peft.core.errors import UserError

Result = TypeVar("Result")


class DeviceThread:
    """Calls functions in one thread, in the order in which they are asked for.

    Args:
        what: it computes for, to a person: ``the compiled model``.
    """

    def __init__(self, what: str) -> None:
        self._what, self._process = what, os.getpid()
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="device")

    def begin(self, function: Callable[..., Result], *arguments: object) -> Future[Result]:
        """Asks for a call; what it returns or raises is the future's.

        Raises UserError where the thread is closed, or this process was forked from the one that has it.
        """
        if os.getpid() != self._process:
            raise UserError(
                f"{self._what} belongs to the process that made it, and this one was forked from that: make another "
                "one here, or start the process afresh, with multiprocessing.get_context('spawn')"
            )
        try:
            return self._pool.submit(function, *arguments)
        except RuntimeError as error:  # the pool's word for being shut down
            raise UserError(f"{self._what} is closed: make another one") from error

    def call(self, function: Callable[..., Result], *arguments: object) -> Result:
        """Calls a function and waits for it; raises what it raises, and as ``begin`` does."""
        return self.begin(function, *arguments).result()

    def close(self) -> None:
        """Refuses whatever is asked from here on, and waits until all is done that was asked before."""
        if os.getpid() == self._process:
            self._pool.shutdown()

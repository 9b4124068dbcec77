"""The body of a request, read under its limits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import anyio
from starlette.requests import ClientDisconnect, Request

from mlx_peft.serve.problems import Problem, busy, too_large
from mlx_peft.serve.settings import Settings

LINGERS = 5.0
"""Seconds for which more than was wanted is read and thrown away, so that whoever sends it reads why it was refused."""


class Bodies:
    """The bytes of all bodies that are held at once.

    Args:
        settings: the limits.

    Attributes:
        held: bytes now.
    """

    def __init__(self, settings: Settings) -> None:
        self.held = 0
        self._settings = settings

    @contextmanager
    def holding(self) -> Iterator[Held]:
        """For one body; what it takes is given back at the end."""
        held = Held(self)
        try:
            yield held
        finally:
            held.free()

    def take(self, size: int) -> None:
        if self.held + size > self._settings.bodies:
            raise busy("too much is being sent at once: ask again later")
        self.held += size


class Held:
    """What one body takes."""

    def __init__(self, bodies: Bodies) -> None:
        self._bodies, self._size = bodies, 0

    def take(self, size: int) -> None:
        """Raises Problem, 503, where all bodies together would be too much."""
        self._bodies.take(size)
        self._size += size

    def free(self) -> None:
        self._bodies.held -= self._size
        self._size = 0


async def read(request: Request, held: Held, most: int, seconds: float) -> bytes:
    """A body.

    Raises:
        Problem: 413, it has more bytes than ``most``; 408, it was not there in time; 503, see ``Bodies``; 400, whoever
            sent it is gone.
    """
    said = request.headers.get("content-length", "")
    if said.isdecimal() and (len(said) > 18 or int(said) > most):
        await _thrown_away(request, most, seconds)
        raise _larger(most)
    chunks: list[bytes] = []
    size = 0
    try:
        with anyio.fail_after(seconds):
            async for chunk in request.stream():
                size += len(chunk)
                if size > most:
                    break
                held.take(len(chunk))
                chunks.append(chunk)
    except TimeoutError:
        reason = f"the body was not there within {seconds:g} seconds: send it faster, or less"
        raise Problem(408, reason, {"connection": "close"}) from None
    except ClientDisconnect:
        raise Problem(400, "the body ended too early", {"connection": "close"}) from None
    if size > most:
        chunks.clear()
        await _thrown_away(request, most, seconds)
        raise _larger(most)
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def _larger(most: int) -> Problem:
    return too_large(f"the body is larger than {most:,} bytes: send fewer or smaller images at once")


async def _thrown_away(request: Request, most: int, seconds: float) -> None:
    """Reads on for a while, unless whoever sends waits to be told to go on."""
    if "expect" in request.headers:
        return
    left = most
    with anyio.move_on_after(min(LINGERS, seconds)):
        try:
            while left > 0:
                message = await request.receive()
                if message["type"] != "http.request" or not message.get("more_body"):
                    return
                left -= len(message.get("body", b""))
        except ClientDisconnect:
            return

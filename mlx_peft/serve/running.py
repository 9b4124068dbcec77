"""The server as a process: where it listens, and how it ends."""

from __future__ import annotations

import gc
import logging
import math
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from types import FrameType
from typing import cast

import uvicorn

from mlx_peft.core.errors import UserError
from mlx_peft.core.signals import PERSON, handled
from mlx_peft.serve.app import create_app
from mlx_peft.serve.connection import Connection, connection
from mlx_peft.serve.engine import Engine
from mlx_peft.serve.settings import Settings

BACKLOG = 256
"""Connections that wait to be taken in."""
KEPT_ALIVE = 30
"""Seconds that a connection without a request stays open."""
LOOKED = 5
"""Tenths of a second after which it is looked again whether answers are read."""


def listening(host: str, port: int) -> socket.socket:
    """A socket at an address, which does not listen yet. Raises UserError where there can be none."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        found = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        raise UserError(f"there is no address {host!r} here: {getattr(error, 'strerror', None) or error}") from error
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
    except (OSError, OverflowError) as error:
        found.close()
        reason = getattr(error, "strerror", None) or error
        text = f"{host}, port {port}: cannot be listened on ({reason}): choose another"
        raise UserError(text, arguments=("port",)) from error
    return found


def url_of(host: str, port: int) -> str:
    """As a browser is given it."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class Server(uvicorn.Server):
    """uvicorn's, which ends with the engine: SIGTERM, SIGHUP and Ctrl-C let it answer what it has taken in.

    A second Ctrl-C ends it at once.
    """

    def __init__(self, config: uvicorn.Config, engine: Engine, told: Callable[[], object]) -> None:
        super().__init__(config)
        self.failure: BaseException | None = None
        self._engine, self._told = engine, told

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._engine.start().add_done_callback(self._warm)

    def _warm(self, future: Future[None]) -> None:
        if future.cancelled():  # it was asked to end before it was warm
            return
        self.failure = future.exception()
        if self.failure is None:
            gc.collect()
            gc.freeze()  # what is there now stays: requests need not wait until it is looked through
            self._told()
        else:
            self.should_exit = True

    async def on_tick(self, counter: int) -> bool:
        if counter % LOOKED == 0:
            for one in [*self.server_state.connections]:
                cast(Connection, one).must_be_read(time.monotonic())
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._engine.drain()
        await super().shutdown(sockets)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        with handled(self._asked_to_end):
            yield

    def _asked_to_end(self, number: int, frame: FrameType | None) -> None:
        """Only notes it: the thread that is interrupted may hold any lock."""
        self.force_exit = self.should_exit and number == PERSON
        self.should_exit = True


def configured(engine: Engine, settings: Settings) -> uvicorn.Config:
    """How uvicorn is to serve an engine."""
    return uvicorn.Config(
        create_app(engine, settings),
        http=connection(settings),
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=BACKLOG,
        timeout_keep_alive=KEPT_ALIVE,
        timeout_graceful_shutdown=math.ceil(settings.drain),
    )


def serve(engine: Engine, settings: Settings, there: socket.socket, told: Callable[[Sequence[str]], object]) -> None:
    """Serves until it is asked to end, and what was taken in is answered.

    Args:
        there: where it listens.
        told: called with the engine's notes once it is warm.

    Raises:
        UserError, or whatever keeps the engine from becoming warm.
    """
    for library in ("uvicorn", "python_multipart"):  # whoever sends what is no HTTP, or no form, fills no log
        logging.getLogger(library).setLevel(logging.ERROR)
    server = Server(configured(engine, settings), engine, lambda: told(engine.notes))
    server.run([there])
    if server.failure is not None:
        raise server.failure

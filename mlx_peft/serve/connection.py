"""A connection that ends where its headers are too many, or too slow, or its answers are not read: uvicorn has no such
limits with httptools."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from mlx_peft.core.json_io import to_json
from mlx_peft.serve.settings import Settings

SPARE = 64
"""Connections beyond the limit that are told so, with 503; further ones are closed at once, so that files can still be
opened."""


class Connection(HttpToolsProtocol):
    """uvicorn's, with limits on headers, on trailers behind a body, and on the time in which nothing is answered: until
    a request has begun, behind an answer, and until that is read.

    What the parser takes without telling of a body, or of an end, is headers: so many bytes of them are taken in a row.
    """

    limits = Settings()

    _quiet = 0
    _told = 0
    _heading = False
    _refused = False
    _timer: asyncio.TimerHandle | None = None
    _unread: float | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.limits.connections + SPARE:
            self._refused = True
            transport.abort()
        else:
            self._expect()

    def connection_lost(self, exc: Exception | None) -> None:
        self._expected()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        self._quiet += len(data)
        super().data_received(data)
        if self._refused or self.transport.is_closing():
            return
        if self._quiet > self.limits.header_bytes:
            self._refuse()
        elif self._timer is None and (self._heading or (self.cycle is not None and self.cycle.response_complete)):
            self._expect()  # of bytes behind an answer too: they have ended uvicorn's own wait for the next request

    # What the parser tells of.

    def on_message_begin(self) -> None:
        self._told, self._heading = 0, True
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        self._told += len(url)
        self._must_be_small()
        if not self._refused:
            super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._told += len(name) + len(value)
        self._must_be_small()
        if not self._refused:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._quiet, self._heading = 0, False
        self._expected()
        if not self._refused:
            most = self.limits.connections
            full = len(self.connections) > most or len(self.tasks) >= most
            self.app = _full if full else self.config.loaded_app
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._quiet = 0
        if not self._refused:
            super().on_body(body)

    def on_message_complete(self) -> None:
        self._quiet = 0
        if not self._refused:
            super().on_message_complete()

    # The end.

    def must_be_read(self, now: float) -> None:
        """Ends it where an answer is not read in time. Called again and again."""
        if not self.transport.get_write_buffer_size():
            self._unread = None
        elif self._unread is None:
            self._unread = now
        elif now - self._unread > self.limits.answer_seconds:
            self.transport.abort()

    def _expect(self) -> None:
        self._timer = self.loop.call_later(self.limits.header_seconds, self._late)

    def _expected(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _late(self) -> None:
        self._timer = None
        self._close()

    def _must_be_small(self) -> None:
        if self._told > self.limits.header_bytes:
            self._refuse()

    def _refuse(self) -> None:
        if not self._refused:
            self._say(431, f"the request's headers are larger than {self.limits.header_bytes:,} bytes: send fewer")
            self._close()

    def send_400_response(self, msg: str) -> None:
        self._say(400, "the request is not HTTP: send HTTP/1.1")
        self._close()

    def _close(self) -> None:
        self._refused = True
        if not self.transport.is_closing():
            self.transport.close()

    def _say(self, status: int, reason: str) -> None:
        """Unless an answer is under way."""
        if self.transport.is_closing() or (self.cycle is not None and not self.cycle.response_complete):
            return
        content = _content(status, reason)
        headers = b"content-type: application/json\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(content)
        self.transport.write(STATUS_LINE[status] + headers + content)


async def _full(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers where too many ask at once: uvicorn's own answer to that says neither why nor until when."""
    headers = {"retry-after": "1", "connection": "close"}
    content = _content(503, "too many are connected at once: ask again later")
    await Response(content, 503, headers, "application/json")(scope, receive, send)


def _content(status: int, reason: str) -> bytes:
    return to_json({"error": {"status": status, "reason": reason}}, indent=None).encode()


def connection(settings: Settings) -> type[Any]:
    """The class of connections under these limits."""
    return type("Limited", (Connection,), {"limits": settings})

"""What a server answers in the place of an answer: a status and one sentence."""

from __future__ import annotations

from collections.abc import Mapping

from mlx_peft.core.errors import shown


class Problem(Exception):
    """A request that gets no answer.

    Attributes:
        status: of HTTP.
        reason: what was wrong, and what would be right. Whoever asked reads it: it names no file of the server's.
        headers: of the response.
    """

    def __init__(self, status: int, reason: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(reason)
        self.status, self.reason, self.headers = status, reason, dict(headers or {})


def unreadable(reason: str) -> Problem:
    """Nothing of the kind can be answered."""
    return Problem(422, reason)


def too_large(reason: str) -> Problem:
    """More than is read. The connection is closed: what is still coming would be taken for the next request."""
    return Problem(413, reason, {"connection": "close"})


def busy(reason: str, seconds: int = 1) -> Problem:
    """Another time it can be answered."""
    return Problem(503, reason, {"retry-after": str(seconds)})


def late(seconds: float) -> Problem:
    """The deadline is over."""
    return Problem(504, f"there was no answer within {seconds:g} seconds: ask again later, or for fewer images")


def gone() -> Problem:
    """Whoever asked has closed the connection. Nobody reads this; the status, which proxies have for it, is counted."""
    return Problem(499, "the connection was closed before the answer was there")


def replaced(name: str) -> Problem:
    """What is asked is no longer what was asked."""
    return busy(f"the model {name!r} was loaded anew meanwhile: ask again")


def unknown(name: str) -> Problem:
    """No adapter is served under the name, or none that this token may ask: the two are not told apart."""
    return Problem(404, f"there is no model {shown(name)} here: GET /v1/models lists those that there are")

"""How much a server takes on: every limit, in one place."""

from __future__ import annotations

from dataclasses import dataclass, field

from mlx_peft.data.limits import Limits
from mlx_peft.serve.tokens import Tokens

MIB = 2**20

LOOPBACK = ("127.0.0.1", "localhost", "::1", "[::1]")
"""What a server that listens on the loopback interface is called."""


@dataclass(frozen=True)
class Settings:
    """The limits of a server, and who may ask it.

    Seconds and bytes, where nothing else is said.

    Attributes:
        max_batch: images that the device answers at once, at most.
        max_delay: so long the device waits for images that are still being decoded; for none it does not wait.
        queue: images of requests that were taken in and are not yet answered, at most; further ones get 503.
        deadline: from a request's body to its answer, at most; then it gets 504.
        images: of one request.
        body: of a request.
        json: of a request in JSON, which takes up to 25 times its bytes while it is read.
        bodies: of all requests that are being read or decoded; further ones get 503.
        body_seconds: until a body is there; then 408.
        header_bytes: of a request's line and headers; then 431, and the connection is closed.
        header_seconds: until they are there; then the connection is closed.
        answer_seconds: until an answer is read; then the connection is closed.
        connections: open at once.
        decoders: threads that decode images.
        drain: after SIGTERM, for what was taken in.
        decoding: of one image. It is narrower than elsewhere, since strangers send them; the environment changes it as
            ever.
        hosts: names that a request may call the server by; none: any. Of a server on the loopback interface it keeps
            pages of the web out that have a name of theirs lead there.
        origins: whose pages may read answers (CORS); none by default.
        admin_token: what loads and unloads adapters; None: nobody can.
        tokens: who may ask which adapters; None: anybody any.
    """

    max_batch: int = 32
    max_delay: float = 0.002
    queue: int = 256
    deadline: float = 30.0
    images: int = 64
    body: int = 32 * MIB
    json: int = 8 * MIB
    bodies: int = 256 * MIB
    body_seconds: float = 30.0
    header_bytes: int = 16 * 2**10
    header_seconds: float = 10.0
    answer_seconds: float = 60.0
    connections: int = 512
    decoders: int = 2
    drain: float = 30.0
    decoding: Limits = field(default_factory=lambda: Limits(pixels=25_000_000, file=32 * MIB, memory=768 * MIB))
    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    admin_token: str | None = None
    tokens: Tokens | None = None

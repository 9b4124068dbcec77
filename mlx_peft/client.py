"""A client of the server, of Python's standard library alone: this file can be copied anywhere.

    from mlx_peft.client import Client

    client = Client("http://127.0.0.1:8000")
    for answer in client.classify(["cat.jpg", "dog.jpg"], adapter="pets"):
        print(answer.best.label, answer.best.probability)

A server that is busy (503) is asked again after the time that it names. Any other refusal, and a server that does not
answer, is a ``ServerError``, a sentence for a person. A client holds no connection and no state: threads may share it.
"""

from __future__ import annotations

import base64
import http.client
import json
import os
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from email.message import Message
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar
from urllib.parse import quote, urlsplit
from uuid import uuid4

MOST = 256 << 20
"""Bytes of an answer at most: what is longer comes from no server of this kind."""
LONGEST_WAIT = 60.0
"""Seconds that a server may ask to be waited for before the next try."""

ImageLike = str | os.PathLike[str] | bytes
"""A file by its path, or the bytes of one: JPEG, PNG and whatever else the server decodes."""


class ServerError(Exception):
    """The server refused, or did not answer.

    Attributes:
        status: of HTTP; None where there was no answer.
        reason: one sentence: what was wrong, and where the server said so, what would be right.
    """

    def __init__(self, reason: str, status: int | None = None) -> None:
        super().__init__(reason if status is None else f"{reason} (status {status})")
        self.status, self.reason = status, reason


@dataclass(frozen=True)
class Class:
    """A class that an adapter names: its row of the head, its name, and its probability, from 0 to 1."""

    index: int
    label: str
    probability: float


@dataclass(frozen=True)
class Answer:
    """What an adapter says of an image: the likeliest classes, the best first."""

    adapter: str | None
    classes: tuple[Class, ...]

    @property
    def best(self) -> Class:
        return self.classes[0]


@dataclass(frozen=True)
class Embedding:
    """What an adapter, or the bare backbone (None), makes of an image for its head."""

    adapter: str | None
    vector: tuple[float, ...]


@dataclass(frozen=True)
class Explanation:
    """Where an adapter looked in an image.

    Attributes:
        of: the class that the picture ``favour`` is about.
        pictures: PNG files by kind: ``image`` as the model sees it, attention ``rollout``, what is in ``favour``
            of the class, and where the model has fewer of them, its ``tokens``.
        tokens: how many go through each block.
    """

    adapter: str | None
    classes: tuple[Class, ...]
    of: str
    pictures: Mapping[str, bytes] = field(repr=False)
    tokens: tuple[int, ...]


@dataclass(frozen=True)
class Model:
    """An adapter that is served: what it was trained on, how, for which classes, and what was measured of it."""

    name: str
    base: str
    method: str | None
    classes: tuple[str, ...]
    metrics: Mapping[str, float]
    loaded: bool
    bytes: int


One = TypeVar("One")


@dataclass(frozen=True)
class Answers(Sequence[One], Generic[One]):
    """As many as there were images, in their order; and the server's milliseconds, in parts and in total."""

    results: tuple[One, ...]
    milliseconds: Mapping[str, float]

    def __len__(self) -> int:
        return len(self.results)

    def __getitem__(self, at: Any) -> Any:
        return self.results[at]


@dataclass(frozen=True)
class Client:
    """Whoever asks a server.

    Args:
        address: ``http://HOST:PORT`` or ``https://...``, with a path before the server's own where a proxy has one.
        token: where the server asks for one.
        timeout: seconds until a connection, or a silent server, is given up.
        retries: how often a busy server (503) is asked again.
        context: of TLS; None: Python's own, which checks certificates.

    Raises:
        ValueError: the address is none of HTTP, or the token cannot stand in a header.
    """

    address: str = "http://127.0.0.1:8000"
    token: str | None = field(default=None, repr=False)
    timeout: float = 30.0
    retries: int = 5
    context: ssl.SSLContext | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        url = urlsplit(self.address)
        if url.scheme not in ("http", "https") or not url.hostname or url.port == 0 or url.query or url.username:
            raise ValueError(f"a server's address should look like http://127.0.0.1:8000, not {self.address!r}")
        if self.token is not None and not (self.token.isascii() and self.token.isprintable() and self.token.strip()):
            raise ValueError("a token should be printable ASCII text")

    def classify(
        self, images: Sequence[ImageLike], adapter: str | Sequence[str] | None = None, top: int = 5
    ) -> Answers[Answer]:
        """The likeliest classes of images.

        Args:
            adapter: one for all, or one an image; None where the server has one adapter alone.
            top: classes of each.

        Raises:
            ServerError: the server refuses, or does not answer.
            OSError: a file cannot be read.
        """
        body, kind = multipart(images, adapter, {"top_k": str(top)})
        return self._answers("v1/classify", _answer, body, kind)

    def embed(self, images: Sequence[ImageLike], adapter: str | Sequence[str] | None = None) -> Answers[Embedding]:
        """What the head reads of images; without an adapter, of the bare backbone. Raises as ``classify``."""
        body, kind = multipart(images, adapter, {})
        return self._answers("v1/embed", _embedding, body, kind)

    def explain(self, image: ImageLike, adapter: str | None = None, top: int = 5) -> Explanation:
        """Where an adapter looks in an image. Raises as ``classify``."""
        body, kind = multipart([image], adapter, {"top_k": str(top)})
        return _read(lambda: _explanation(self._json("POST", "v1/explain", body, kind)["result"]))

    def models(self) -> tuple[Model, ...]:
        """The adapters that are served. Raises ServerError."""
        return _read(lambda: tuple(_model(each) for each in self._json("GET", "v1/models")["models"]))

    def load(self, name: str) -> None:
        """Has the server read the folder of a name, anew where it has it already; it takes an admin's token."""
        self._json("PUT", f"v1/models/{quote(name, safe='')}")

    def unload(self, name: str) -> None:
        """Has the server let an adapter go; it takes an admin's token."""
        self._json("DELETE", f"v1/models/{quote(name, safe='')}")

    def ready(self) -> bool:
        """Whether the server answers by now; False too where none is there."""
        try:
            return self._once("GET", "v2/health/ready", None, "")[0] == 200
        except ServerError:
            return False

    def _answers(self, path: str, made: Callable[[Any], One], body: bytes, kind: str) -> Answers[One]:
        found = self._json("POST", path, body, kind)
        return _read(lambda: Answers(tuple(made(each) for each in found["results"]), found["milliseconds"]))

    def _json(self, verb: str, path: str, body: bytes | None = None, kind: str = "") -> Any:
        """What the server answers; a busy one is asked again. Raises ServerError."""
        for left in range(self.retries, -1, -1):
            status, headers, content = self._once(verb, path, body, kind)
            if status != 503 or left == 0:
                break
            time.sleep(_wait(headers.get("Retry-After")))
        if not 200 <= status < 300:
            raise ServerError(_reason(status, content), status)
        return _read(lambda: json.loads(content) if content else None)

    def _once(self, verb: str, path: str, body: bytes | None, kind: str) -> tuple[int, Message, bytes]:
        parts = urlsplit(self.address)
        assert parts.hostname is not None
        secure = partial(http.client.HTTPSConnection, context=self.context)
        connect = secure if parts.scheme == "https" else http.client.HTTPConnection
        connection = connect(parts.hostname, parts.port, timeout=self.timeout)
        headers = {"Accept": "application/json", "Connection": "close"}
        if body is not None:
            headers["Content-Type"] = kind
        if self.token is not None:
            headers["Authorization"] = f"Bearer {self.token}"
        try:
            connection.request(verb, f"{parts.path.rstrip('/')}/{path}", body, headers)
            answer = connection.getresponse()
            content = answer.read(MOST + 1)
        except TimeoutError as error:
            raise ServerError(f"{self.address} did not answer within {self.timeout:g} seconds") from error
        except (OSError, http.client.HTTPException) as error:
            raise ServerError(f"{self.address} does not answer ({error}): is the server running?") from error
        finally:
            connection.close()
        if len(content) > MOST:
            raise ServerError(f"{self.address} answered with more than {MOST >> 20} MiB")
        return answer.status, answer.headers, content


def multipart(
    images: Sequence[ImageLike], adapter: str | Sequence[str] | None, fields: Mapping[str, str]
) -> tuple[bytes, str]:
    """Images and fields as ``multipart/form-data``, and its media type. Names of files stay here."""
    if isinstance(images, str | bytes | os.PathLike):
        raise TypeError("images are a list: put one alone into brackets")
    names = [] if adapter is None else [adapter] if isinstance(adapter, str) else list(adapter)
    boundary = uuid4().hex.encode()
    head = b'name="images"; filename="image"\r\nContent-Type: application/octet-stream\r\n\r\n'
    parts = [head + (image if isinstance(image, bytes) else Path(image).read_bytes()) for image in images]
    for name, value in [*(("adapter", each) for each in names), *fields.items()]:
        parts.append(f'name="{name}"\r\n\r\n{value}'.encode())
    start = b"--" + boundary + b"\r\nContent-Disposition: form-data; "
    body = b"".join(start + part + b"\r\n" for part in parts) + b"--" + boundary + b"--\r\n"
    return body, f"multipart/form-data; boundary={boundary.decode()}"


def _wait(said: str | None) -> float:
    """Seconds until the next try: those that the server names; 1 where it names none, or a date."""
    return min(float(said), LONGEST_WAIT) if said is not None and said.isdecimal() else 1.0


def _reason(status: int, content: bytes) -> str:
    """The sentence that the server has for a person, or what its status means."""
    try:
        return str(json.loads(content)["error"]["reason"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return f"the server answered: {http.client.responses.get(status, 'nothing that HTTP knows')}"


def _read(what: Callable[[], One]) -> One:
    """What is made of an answer. Raises ServerError where that is not what this client reads."""
    try:
        return what()
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ServerError(f"the answer is none of mlx-peft's server ({error!r}): is that its address?") from error


def _classes(found: Any) -> tuple[Class, ...]:
    return tuple(Class(int(each["index"]), str(each["label"]), float(each["probability"])) for each in found)


def _answer(found: Any) -> Answer:
    return Answer(found["adapter"], _classes(found["classes"]))


def _embedding(found: Any) -> Embedding:
    return Embedding(found["adapter"], tuple(map(float, found["embedding"])))


def _explanation(found: Any) -> Explanation:
    pictures = {name: base64.b64decode(text, validate=True) for name, text in found["pictures"].items()}
    return Explanation(found["adapter"], _classes(found["classes"]), found["of"], pictures, tuple(found["tokens"]))


def _model(found: Any) -> Model:
    keys = ("name", "base", "method", "metrics", "loaded", "bytes")
    return Model(classes=tuple(found["classes"]), **{key: found[key] for key in keys})

"""Requests that no honest client sends. Each is to get a status from 400 to 499, and to cost little."""

from __future__ import annotations

import base64
import io
import json
import struct
import zlib
from dataclasses import dataclass

from PIL import Image

from mlx_peft.client import multipart

JSON, FORM = "application/json", "multipart/form-data"


@dataclass(frozen=True)
class Hostile:
    """A request, and what it is."""

    what: str
    path: str
    body: bytes
    kind: str = JSON
    verb: str = "POST"


def png(width: int, height: int) -> bytes:
    """A PNG of 300 bytes that says it has so many pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(b"\0" * 100_000))
        + chunk(b"IEND", b"")
    )


def _photo() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (160, 120), (90, 120, 60)).save(file, "JPEG")
    return file.getvalue()


def requests(name: str) -> list[Hostile]:
    """All of them. ``name`` is an adapter that there is."""
    good = _photo()
    text = base64.b64encode(good).decode()

    def form(what: str, *images: bytes, adapter: str = name, path: str = "/v1/classify", **fields: str) -> Hostile:
        return Hostile(what, path, *multipart(images, adapter, fields))

    def document(what: str, content: object, path: str = "/v1/classify") -> Hostile:
        return Hostile(what, path, json.dumps(content).encode())

    one, infer = [{"data": text}], f"/v2/models/{name}/infer"
    return [
        form("an empty image", b""),
        form("text for an image", b"<svg xmlns='http://www.w3.org/2000/svg'/>"),
        form("a cut JPEG", good[: len(good) // 2]),
        form("a PNG of 60,000 x 60,000 pixels", png(60_000, 60_000)),
        form("a PNG of 2^31 - 1 pixels a side", png(2**31 - 1, 2**31 - 1)),
        form("two hundred images", *[good] * 200),
        form("no image"),
        form("an adapter that is a path", good, adapter="../../../../etc/passwd"),
        form("an adapter that is a control sign", good, adapter="\x1b[2J"),
        form("an adapter that there is not", good, adapter="nobody"),
        form("an adapter's name of 100,000 letters", good, adapter="a" * 100_000),
        form("fewer classes than one", good, top_k="0"),
        form("a number of classes that is none", good, top_k="many"),
        form("1e400 classes", good, top_k="1e400"),
        Hostile("a form of another boundary", "/v1/classify", multipart([good], name, {})[0], f"{FORM}; boundary=x"),
        Hostile("a form without a boundary", "/v1/classify", b"--x\r\n", FORM),
        Hostile("JSON that is none", "/v1/classify", b'{"images": ['),
        Hostile("100,000 brackets", "/v1/classify", b"[" * 100_000),
        Hostile("bytes that are no UTF-8", "/v1/classify", b'{"adapter": "\xff\xfe"}'),
        Hostile("a type that nobody reads", "/v1/classify", b"<a/>", "application/xml"),
        document("a list for an object", [1, 2, 3]),
        document("images that are none", {"images": "all", "adapter": name}),
        document("base64 that is none", {"images": [{"data": "%%%%"}], "adapter": name}),
        document("an adapter that is a number", {"images": one, "adapter": 3}),
        document("a top_k that is an object", {"images": one, "adapter": name, "top_k": {"a": 1}}),
        document("a top_k that is not a number", {"images": one, "adapter": name, "top_k": float("nan")}),
        document("an adapter of an image that is a list", {"images": [{"data": text, "adapter": [name]}]}),
        form("a bomb for embeddings", png(60_000, 60_000), path="/v1/embed"),
        form("a bomb to be explained", png(60_000, 60_000), path="/v1/explain"),
        Hostile("a verb that is not here", "/v1/classify", b"", verb="DELETE"),
        Hostile("a page that is not here", "/static/..%2f..%2fclient.py", b"", verb="GET"),
        Hostile("loading without a token", f"/v1/models/{name}", b"", verb="PUT"),
        Hostile("letting go without a token", f"/v1/models/{name}", b"", verb="DELETE"),
        Hostile("loading a path", "/v1/models/..%2f..%2fetc", b"", verb="PUT"),
        document("a tensor that is none", {"inputs": [{"name": "x", "shape": [-1], "data": []}]}, infer),
    ]  # fmt: skip

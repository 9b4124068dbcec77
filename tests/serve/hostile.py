"""Requests that nobody should send, drawn from a seed: the bytes of each, as they go over a connection.

None of them can be answered, so that each answer is a 4xx. What is drawn: images that promise more than they hold or
are damaged, JSON of any shape, forms that are none, headers that are too many or make no sense, paths that lead away.
"""

from __future__ import annotations

import base64
import json
import random
import struct
import zlib
from collections.abc import Callable

from serve.conftest import encoded

Draw = Callable[[random.Random], bytes]

WORDS = ("images", "adapter", "top_k", "data", "inputs", "shape", "datatype", "", "\0", "../..", "é" * 50, "x" * 3000)
NAME = "00-lora"
"""An adapter that is served."""


def http(method: str, path: str, headers: dict[str, str], body: bytes = b"") -> bytes:
    """A request, with its length where nothing else is said."""
    lines = {"host": "127.0.0.1", "connection": "close", "content-length": str(len(body))} | headers
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode("latin-1", "replace") + body


def form(parts: list[tuple[str, bytes]], boundary: str = "edge") -> bytes:
    lines = [
        b'--%s\r\nContent-Disposition: form-data; name="%s"; filename="a"\r\n\r\n%s\r\n'
        % (boundary.encode(), name.encode(), data)
        for name, data in parts
    ]
    return b"".join(lines) + b"--%s--\r\n" % boundary.encode()


def in_form(image: bytes, path: str = "/v1/classify") -> bytes:
    kind = {"content-type": "multipart/form-data; boundary=edge"}
    return http("POST", path, kind, form([("images", image), ("adapter", NAME.encode())]))


# Images.


def png(width: int, height: int, depth: int, colour: int, data: bytes) -> bytes:
    """A PNG whose header says what it likes."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data, 9)) + chunk(b"IEND", b"")


def bomb(random: random.Random) -> bytes:
    """A small file that promises very many pixels, and of a PNG in part holds them."""
    width, height = random.choice([(60_000, 60_000), (2**31 - 1, 2**31 - 1), (30_000, 900), (1, 90_000), (6000, 6000)])
    kind = random.randrange(5)
    if kind == 0:
        held = bytes(min(width * 3 + 1, 1 << 20)) * random.randrange(1, 20)
        return png(width, height, 8, 2, held)
    if kind == 1:
        return b"GIF89a" + struct.pack("<HHBBB", width % 65536, height % 65536, 0, 0, 0) + b",\0\0\0\0" + bytes(20)
    if kind == 2:
        return b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
    if kind == 3:
        size = struct.pack(">HH", min(height, 65500), min(width, 65500))
        frame = b"\xff\xc2\0\x11\x08" + size + b"\3\1\x22\0\2\x11\1\3\x11\1"
        scan = b"\xff\xda\0\x0c\3\1\0\2\x11\3\x11\0\0\0"
        return b"\xff\xd8" + frame + scan * random.randrange(1, 300) + b"\xff\xd9"
    entries = [
        (256, 4, width % 2**31),
        (257, 4, height % 2**31),
        (258, 3, 8),
        (262, 3, 1),
        (273, 4, 8),
        (279, 4, 2**31 - 1),
    ]
    packed = b"".join(struct.pack("<HHII", tag, form, 1, value) for tag, form, value in entries)
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + packed + bytes(4)


def damaged(random: random.Random) -> bytes:
    """An image with its end cut off, or its middle overwritten beyond any doubt."""
    whole = encoded(random.randrange(5), random.choice(["PNG", "JPEG", "GIF", "TIFF", "BMP", "WEBP"]))
    if random.random() < 0.5:
        return whole[: random.randrange(len(whole) // 2)]
    return whole[: random.randrange(4, 16)] + random.randbytes(random.randrange(1, 200))


def image(random: random.Random) -> bytes:
    made = random.choice([bomb, damaged, lambda random: random.randbytes(random.randrange(3000))])
    found: bytes = made(random)
    if random.random() < 0.3:
        data = {"data": base64.b64encode(found).decode()}
        body = json.dumps({"images": [data], "adapter": NAME}).encode()
        return http("POST", "/v1/classify", {"content-type": "application/json"}, body)
    return in_form(found, random.choice(["/v1/classify", "/v1/embed"]))


# JSON.


def value(random: random.Random, depth: int = 0) -> object:
    kind = random.randrange(9 if depth < 4 else 6)
    if kind < 6:
        texts = [random.choice(WORDS), "A" * random.randrange(2000), random.randrange(-(10**30), 10**30), 1e308]
        return random.choice([None, True, False, random.random(), *texts])
    if kind == 6:
        return [value(random, depth + 1) for _ in range(random.randrange(4))]
    return {random.choice(WORDS): value(random, depth + 1) for _ in range(random.randrange(4))}


def in_json(random: random.Random) -> bytes:
    deep = random.randrange(2000, 50_000)
    texts = [
        b"[" * deep, b'{"images":' * deep, b"[" * deep + b"]" * deep, b"NaN", b"1" * 5000, b'"\\ud800"', b"\xff\xfe",
        b'{"images": [], "images": []}', b"{}" * 1000, b"[" + b"{}," * 50_000 + b"{}]",
        json.dumps({"images": [{"data": "AAA"}] * random.randrange(1, 100), "adapter": NAME}).encode(),
    ]  # fmt: skip
    texts += [json.dumps(value(random)).encode(), json.dumps({"images": value(random), "adapter": NAME}).encode()] * 4
    path = random.choice(["/v1/classify", "/v1/embed", f"/v2/models/{NAME}/infer"])
    return http("POST", path, {"content-type": "application/json"}, random.choice(texts))


def tensor(random: random.Random) -> bytes:
    shapes = [[1, 2, 2, 4], [2**31, 2, 2, 3], [1, 1, 90_000, 3], [-1, 2, 2, 3], [], [1], [1, 2, 2, 3] * 50, "x", None]
    data = random.choice([[300] * 12, ["a" * 1000] * 12, [[[]]], [0.5] * 12, "x", None, [[0] * 3] * 5, [None] * 12])
    shape = random.choice([*shapes, [1, 2, 2, 3]])
    kind = random.choice(["UINT8", "BYTES", "FP32", "", None, 3])
    body = {"inputs": [{"name": "images", "datatype": kind, "shape": shape, "data": data}]}
    return http("POST", f"/v2/models/{NAME}/infer", {"content-type": "application/json"}, json.dumps(body).encode())


# Forms, headers and paths.


def no_form(random: random.Random) -> bytes:
    part = b'--edge\r\nContent-Disposition: form-data; name="images"\r\n\r\n' + random.randbytes(20)
    bodies = [
        b"", random.randbytes(500), part, part + b"\r\n", b"--edge--\r\n", b"--edge\r\n\r\nx\r\n--edge--\r\n",
        form([("images", b"x")] * 200), form([("images", b"x"), ("adapter", b"x" * 2000)]), form([("y", b"x")]),
        b"--edge\r\n" + b"a: b\r\n" * 500 + b"\r\nx\r\n--edge--\r\n", b"--edge\r\n" + b"a" * 20_000 + b": b\r\n\r\nx",
        form([("images", b"x"), ("top_k", random.choice([b"0", b"-1", b"x", b"1e9", b"9" * 99]))]), b"\r\n" * 50_000,
        form([("images", b"x"), ("adapter", random.choice(WORDS).encode() or b"..")]), b"--edge" * 20_000,
    ]  # fmt: skip
    edges = ["edge", "edge", "edge", "", '"', "x" * 100, "edge; boundary=other", "=?utf-8?q?x?="]
    kind = {"content-type": f"multipart/form-data; boundary={random.choice(edges)}"}
    return http("POST", random.choice(["/v1/classify", "/v1/embed"]), kind, random.choice(bodies))


def headers(random: random.Random) -> bytes:
    kinds = [
        "text/html",
        "image/png",
        "application/x-www-form-urlencoded",
        "x" * 500,
        "",
        "multipart/form-data",
        "a/b;" * 50,
    ]
    odd = [
        {"content-type": random.choice(kinds)}, {"x-large": "x" * random.randrange(17_000, 60_000)},
        {f"x-{at}": "y" * 100 for at in range(300)}, {"content-length": "-5"}, {"content-length": "9" * 30},
        {"content-length": "x"}, {"transfer-encoding": "chunked"}, {"content-length": str(10**12)},
        {"transfer-encoding": "gzip, chunked", "content-length": "5"}, {"host": "evil.example"}, {"host": ""},
        {"x\0y": "z"}, {"x y": "z"}, {"x": "a\0b"},
    ]  # fmt: skip
    return http("POST", "/v1/classify", random.choice(odd), b"zz\r\nnot a chunk")


def paths(random: random.Random) -> bytes:
    names = [
        "..%2f..%2fetc%2fpasswd",
        "%00",
        "..",
        "%ff%fe",
        "a" * 5000,
        "%",
        "é",
        "a%2fb",
        "no-such",
        "'; --",
        "{name}",
    ]
    name = random.choice(names)
    method = random.choice(["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "BREW"])
    path = random.choice(["/v1/models/{}", "/v2/models/{}/infer", "/static/{}", "/{}", "/v2/models/{}", "/v1/{}"])
    return http(method, path.replace("{}", name), {})


def noise(random: random.Random) -> bytes:
    """No HTTP at all, or the beginning of another protocol's."""
    starts = [
        b"\x16\x03\x01\x02\0\x01\0\x01\xfc",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET /\r\n\r\n",
        b"\0" * 50,
        b"SSH-2.0-x\r\n",
    ]
    return random.choice(
        [*starts, b"\xff" + random.randbytes(300), b"GET / HTTP/9.9\r\n\r\n", b"\r\n\r\nx y z\r\n\r\n"]
    )


KINDS: tuple[Draw, ...] = (image, image, in_json, tensor, no_form, headers, paths, noise)


def request(seed: int) -> bytes:
    """A request of a seed."""
    drawn = random.Random(seed)
    return KINDS[seed % len(KINDS)](drawn)

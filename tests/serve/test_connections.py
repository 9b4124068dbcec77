"""Over real connections: what is too large, too slow or no HTTP ends there, and the server goes on serving."""

from __future__ import annotations

import json
import re
import socket
import time
from collections import Counter
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from halves import daily
from serve.conftest import LIMITS, encoded, listens
from serve.hostile import NAME, form, http, in_form, request
from serve.test_limits import until

from mlx_peft.serve.connection import SPARE

PATIENCE = 20.0
"""Seconds after which a server is taken to hang."""


def connected(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), PATIENCE)


def answered(connection: socket.socket) -> bytes:
    """All that comes until the connection ends."""
    chunks = []
    try:
        while chunk := connection.recv(65536):
            chunks.append(chunk)
    except ConnectionResetError:
        pass
    return b"".join(chunks)


def ask(port: int, *parts: bytes, pause: float = 0.0) -> tuple[int, str]:
    """The status of a request that is sent in parts, 0 where there was no answer; and the reason."""
    with connected(port) as there:
        try:
            for part in parts:
                there.sendall(part)
                time.sleep(pause)
        except (BrokenPipeError, ConnectionResetError):
            pass
        answer = answered(there)
    if not answer:
        return 0, ""
    found = re.match(rb"HTTP/1\.1 (\d{3}) ", answer)
    assert found is not None, answer[:100]
    return int(found[1]), answer.partition(b"\r\n\r\n")[2].decode("utf-8", "replace")


GOOD = in_form(encoded(0))


def must_serve(port: int) -> None:
    assert ask(port, GOOD)[0] == 200


def test_a_good_request_is_answered_whole_or_in_pieces(port: int) -> None:
    status, body = ask(port, GOOD)
    assert status == 200 and json.loads(body)["results"][0]["adapter"] == NAME
    assert ask(port, GOOD[:100], GOOD[100:900], GOOD[900:], pause=0.05)[0] == 200


def test_headers_beyond_the_limit_are_431_wherever_they_are(port: int) -> None:
    large = b"x-large: " + b"x" * 20_000
    start = b"POST /v1/classify HTTP/1.1\r\nhost: 127.0.0.1\r\n"
    many = b"".join(b"x-%d: y\r\n" % at for at in range(5000))
    for sent in ([start + large + b"\r\n\r\n"], [start + large], [start, *[b"x: y\r\n" * 100] * 50], [start + many]):
        assert ask(port, *sent)[0] == 431
    assert ask(port, b"GET /" + b"x" * 20_000 + b" HTTP/1.1\r\n\r\n")[0] == 431
    must_serve(port)


IN_HEADERS = b"POST /v1/classify HTTP/1.1\r\nhost: 127.0.0.1\r\nx"


def test_trailers_without_end_end_the_connection(port: int) -> None:
    """Behind a body in chunks come headers again."""
    start = http("POST", "/v1/classify", {"transfer-encoding": "chunked"}).replace(b"content-length: 0\r\n", b"")
    status, _ = ask(port, start, b"1\r\nx\r\n0\r\n", *[b"x-more: " + b"y" * 1000 + b"\r\n"] * 40)
    assert status in (0, 431)
    status, _ = ask(port, start, b"1\r\nx\r\n0\r\nx-large: ", *[b"y" * 1000] * 40)
    assert status in (0, 431)
    must_serve(port)


@pytest.mark.parametrize("sent", daily([b"", b"POST /v1/cl", IN_HEADERS], IN_HEADERS))
def test_whoever_sends_no_request_is_let_go(port: int, sent: bytes) -> None:
    with connected(port) as there:
        there.sendall(sent)
        assert answered(there) == b""
    must_serve(port)


def test_headers_that_trickle_in_are_cut_off(port: int) -> None:
    began = time.monotonic()
    assert ask(port, b"GET / HTTP/1.1\r\n", *[b"a: b\r\n"] * 30, pause=0.1)[0] == 0
    assert time.monotonic() - began < PATIENCE


REFUSED = http("POST", "/nowhere", {"content-length": "1000", "connection": "keep-alive"})
LOOKED = b"GET /v2 HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n"


@pytest.mark.parametrize(("sent", "more"), [(REFUSED, b"x"), (LOOKED, b"\r\n")], ids=["a body", "empty lines"])
def test_bytes_behind_an_answer_keep_no_connection(port: int, sent: bytes, more: bytes) -> None:
    with connected(port) as there:
        there.sendall(sent)
        assert there.recv(65536).startswith(b"HTTP/1.1 ")
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            for _ in range(80):
                there.sendall(more)
                time.sleep(0.1)


def test_an_answer_that_nobody_reads_keeps_no_connection(folder: Path) -> None:
    """Of many requests at once, so that no buffer on the way holds all answers."""
    many = b"GET /openapi.json HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n" * 2000
    with listens(folder, replace(LIMITS, answer_seconds=0.5)) as (port, server):
        with connected(port) as there:
            there.settimeout(0.2)
            with suppress(TimeoutError):
                there.sendall(many)
            until(lambda: server.server_state.connections)
            until(lambda: not server.server_state.connections)
        must_serve(port)


def test_connections_are_as_many_as_files_can_be_open(folder: Path) -> None:
    with listens(folder, replace(LIMITS, connections=2, header_seconds=30)) as (port, server), ExitStack() as stack:
        there = [stack.enter_context(connected(port)) for _ in range(2 + SPARE + 10)]
        assert all(answered(one) == b"" for one in there[-10:])
        assert len(server.server_state.connections) == 2 + SPARE


def test_past_its_connections_it_says_503_and_when_to_ask_again_and_those_within_are_answered(folder: Path) -> None:
    with listens(folder, replace(LIMITS, connections=2, header_seconds=30)) as (port, server), ExitStack() as stack:
        there = [stack.enter_context(connected(port)) for _ in range(3)]
        until(lambda: len(server.server_state.connections) == 3)
        there[0].sendall(GOOD)
        head, _, body = answered(there[0]).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 503 ") and b"\r\nretry-after: 1" in head.lower()
        assert "ask again" in json.loads(body)["error"]["reason"]
        until(lambda: len(server.server_state.connections) == 2)
        for one in there[1:]:
            one.sendall(GOOD)
            assert one.recv(65536).startswith(b"HTTP/1.1 200 ")


def test_a_body_that_trickles_in_is_408(port: int) -> None:
    head, _, body = GOOD.partition(b"\r\n\r\n")
    status, reason = ask(port, head + b"\r\n\r\n", *[body[at : at + 1] for at in range(15)], pause=0.1)
    assert status == 408 and "0.5 seconds" in reason
    must_serve(port)


def test_whoever_leaves_in_the_middle_of_a_body_leaves_nothing_behind(port: int) -> None:
    for end in (50, 300, len(GOOD) - 1):
        with connected(port) as there:
            there.sendall(GOOD[:end])
    must_serve(port)


def test_a_body_beyond_the_limit_is_told_so_before_the_connection_ends(port: int) -> None:
    body = b"x" * (LIMITS.json + 1000)
    status, reason = ask(port, http("POST", "/v1/classify", {"content-type": "application/json"}, body))
    assert status == 413 and "larger than" in reason


def test_a_connection_is_kept_for_the_next_request(port: int) -> None:
    again = GOOD.replace(b"connection: close\r\n", b"")
    with connected(port) as there:
        there.sendall(again + again)
        there.sendall(GOOD)
        assert answered(there).count(b"HTTP/1.1 200 ") == 3


def test_answers_are_kept_nowhere_on_their_way(port: int) -> None:
    with connected(port) as there:
        there.sendall(GOOD)
        head = answered(there).partition(b"\r\n\r\n")[0].lower()
    assert b"cache-control: no-store" in head and b"x-content-type-options: nosniff" in head
    assert b"server:" not in head


def must_refuse(port: int, seeds: range) -> Counter[int]:
    """Sends what nobody should; every answer is a 4xx, or where no HTTP was sent there is none."""
    found: Counter[int] = Counter()
    for seed in seeds:
        status, body = ask(port, request(seed))
        assert status == 0 or 400 <= status < 500, (seed, status, body[:300])
        assert not body or "Traceback" not in body
        found[status] += 1
    must_serve(port)
    return found


def test_hostile_requests_get_4xx_and_leave_the_server_serving(port: int) -> None:
    found = must_refuse(port, range(120))
    assert found[0] < 12 and {400, 404, 413, 422, 431} <= found.keys()


@pytest.mark.slow
def test_ten_thousand_hostile_requests_leave_the_server_as_it_was(port: int) -> None:
    import psutil

    must_refuse(port, range(1000))  # what is read and compiled once is in memory then
    before = psutil.Process().memory_info().rss
    found = must_refuse(port, range(1000, 10_000))
    grown = psutil.Process().memory_info().rss / before - 1
    print(dict(found), f"memory {grown:+.1%}")
    assert grown < 0.05


def test_what_is_drawn_is_the_same_of_the_same_seed() -> None:
    drawn: Any = [request(seed) for seed in range(40)]
    assert drawn == [request(seed) for seed in range(40)]
    assert len(set(drawn)) > 35 and form([]) == b"--edge--\r\n"

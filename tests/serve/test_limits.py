"""What a server does not take on: too much, too large, too late; and what whoever asked reads then."""

from __future__ import annotations

import base64
import json
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from serve.conftest import Running, Start, encoded

from mlx_peft.data.limits import Limits
from mlx_peft.serve.problems import Problem

SAME = 1e-5
"""See test_answers."""


class Held:
    """What is served, whose device does nothing until it is let go."""

    def __init__(self, served: Any) -> None:
        self._served, self.gate, self.begun = served, threading.Event(), threading.Event()
        self.gate.set()
        self.batches: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._served, name)

    def answer(self, images: Any, rows: Any, headed: Any) -> Any:
        self.begun.set()
        assert self.gate.wait(20)
        self.batches.append(len(images))
        return self._served.answer(images, rows, headed)

    @contextmanager
    def held(self) -> Iterator[None]:
        self.gate.clear()
        try:
            yield
        finally:
            self.gate.set()


def reason(answer: Any, status: int) -> str:
    """What an answer says is wrong, which names no file of the server's."""
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert error["status"] == status and "Traceback" not in error["reason"]
    return str(error["reason"])


class Later:
    """A request in a thread of its own."""

    def __init__(self, server: Running, **more: Any) -> None:
        self.answer: Any = None
        name = more.pop("adapter", server.names[0])

        def ask() -> None:
            self.answer = server.classify([encoded(0)], adapter=name)

        self.thread = threading.Thread(target=ask)
        self.thread.start()

    def status(self) -> int:
        self.thread.join(20)
        return int(self.answer.status_code)


def until(true: Any) -> None:
    end = time.monotonic() + 20
    while not true():
        assert time.monotonic() < end
        time.sleep(0.001)


def test_past_a_full_queue_it_says_503_and_when_to_ask_again_and_loses_nothing(start: Start) -> None:
    server = start(wrap=Held, queue=3)
    with server.engine.served.held():
        taken = [Later(server) for _ in range(3)]
        until(lambda: server.engine.waiting == 3)
        full = server.classify([encoded(1)], adapter=server.names[0])
        assert "3 images are waiting" in reason(full, 503)
        assert int(full.headers["retry-after"]) >= 1
    assert [one.status() for one in taken] == [200, 200, 200]
    assert server.classify([encoded(1)], adapter=server.names[0]).status_code == 200
    assert server.engine.waiting == 0


def test_behind_the_deadline_it_says_504_and_the_device_computes_nothing_for_nobody(start: Start) -> None:
    server = start(wrap=Held, deadline=0.2, max_batch=1)
    served = server.engine.served
    with served.held():
        first = Later(server)
        served.begun.wait(20)
        second = Later(server)
        assert (first.status(), second.status()) == (504, 504)
    until(lambda: server.engine.waiting == 0)
    assert served.batches == [1]  # of the first; the second was not begun
    assert server.classify([encoded(1)], adapter=server.names[0]).status_code == 200


def test_batches_mix_what_waits_and_are_no_larger_than_they_may_be(start: Start) -> None:
    server = start(wrap=Held, max_batch=4)
    served = server.engine.served
    with served.held():
        taken = [Later(server)]
        served.begun.wait(20)
        taken += [Later(server, adapter=server.names[at % 5]) for at in range(6)]
        until(lambda: server.engine._line._waiting == 6)  # decoded, all of them
    assert [one.status() for one in taken] == [200] * 7
    assert served.batches == [1, 4, 2]


def test_one_request_of_more_images_than_a_batch_is_answered_in_parts(start: Start) -> None:
    server = start(wrap=Held, max_batch=4)
    files = [encoded(number) for number in range(10)]
    whole = server.classify(files, adapter=server.names[0]).json()["results"]
    assert server.engine.served.batches == [4, 4, 2]
    alone = server.classify(files[9:], adapter=server.names[0]).json()["results"][0]["classes"]
    assert [one["label"] for one in whole[9]["classes"]] == [one["label"] for one in alone]
    assert [one["probability"] for one in whole[9]["classes"]] == pytest.approx(
        [one["probability"] for one in alone], abs=SAME
    )


@pytest.mark.parametrize("length", [True, False], ids=["that says its length", "in chunks"])
def test_a_body_beyond_the_limit_is_413(start: Start, length: bool) -> None:
    server = start(body=10_000, json=10_000, body_seconds=0.2)
    large = b"x" * 10_001
    headers = {"content-type": "application/json"}
    answer = server.http.post(
        "/v1/classify", content=large if length else iter([large[:5000], large[5000:]]), headers=headers
    )
    assert "larger than 10,000 bytes" in reason(answer, 413)


@pytest.mark.parametrize("kind", ["Application/JSON", "APPLICATION/JSON ; charset=utf-8", " application/json"])
def test_json_is_json_in_capital_letters_too(start: Start, kind: str) -> None:
    """What is read of JSON takes much memory, so that less of it is taken than of files."""
    answer = start(json=10_000).http.post("/v1/classify", content=b"[" * 10_001, headers={"content-type": kind})
    assert "larger than 10,000 bytes" in reason(answer, 413)


def test_more_images_than_are_answered_at_once_are_422(start: Start) -> None:
    server = start(images=2)
    assert "at most 2" in reason(server.classify([encoded(0)] * 3, adapter=server.names[0]), 422)


def test_bodies_together_are_bounded(start: Start) -> None:
    server = start(bodies=1000)
    assert "too much is being sent" in reason(server.classify([encoded(0)], adapter=server.names[0]), 503)


def test_pixels_beyond_the_limit_are_422_with_the_reason_before_they_are_decoded(start: Start) -> None:
    server = start(decoding=Limits(pixels=2000))
    answer = server.classify([encoded(0, size=(20, 20)), encoded(1, size=(60, 60))], adapter=server.names[0])
    assert "images[1]" in reason(answer, 422) and "more than 2,000 pixels" in reason(answer, 422)


@pytest.mark.parametrize("content", [b"", b"no image", encoded(0)[:200], encoded(0, "JPEG")[:300]])
def test_what_is_no_image_is_422_and_named(plain: Running, content: bytes) -> None:
    server = plain
    assert reason(server.classify([encoded(0), content], adapter=server.names[0]), 422).startswith("images[1]: ")


def test_a_name_is_never_a_path(start: Start) -> None:
    server = start()
    for name in ("../served", "/etc", "..", "a/b", "\0", "x" * 1000, "no-such"):
        reason(server.classify([encoded(0)], adapter=name), 404)
        found = server.http.put(f"/v1/models/{name.replace(chr(0), '%00')}")
        assert found.status_code in (403, 404, 405)


@pytest.mark.parametrize(
    ("value", "status"),
    [
        ("no JSON", 400),
        ('{"images": [], "images": []}', 400),
        ("[" * 100_000, 400),
        ("[]", 422),
        ('{"images": []}', 422),
        ('{"images": [{}]}', 422),
        ('{"images": [{"data": "?"}]}', 422),
        ('{"images": [{"data": 1}]}', 422),
        ('{"images": [{"data": "", "more": 1}]}', 422),
        ('{"images": "x"}', 422),
        ('{"images": [{"data": ""}], "top_k": 0}', 422),
        ('{"images": [{"data": ""}], "top_k": true}', 422),
        ('{"images": [{"data": ""}], "top_k": 1e99}', 422),
        ('{"images": [{"data": ""}], "adapter": 3}', 422),
        (json.dumps({"images": [{"data": "", "adapter": ""}], "adapter": "x" * 1025}), 422),
        ('{"images": [{"data": ""}]}', 409),
        ('{"images": [{"data": ""}], "adapter": "no-such"}', 404),
    ],
)
def test_json_that_cannot_be_answered_is_told_why(plain: Running, value: str, status: int) -> None:
    answer = plain.http.post("/v1/classify", content=value, headers={"content-type": "application/json"})
    assert reason(answer, status)


@pytest.mark.parametrize(
    ("kind", "body", "status"),
    [
        (None, b"", 415),
        ("text/plain", b"x", 415),
        ("multipart/form-data", b"x", 400),
        ("multipart/form-data; boundary=x", b"x", 400),
        ("multipart/form-data; boundary=x", b"--x\r\n\r\nbody\r\n--x--\r\n", 400),
        ("multipart/form-data; boundary=x", b'--x\r\ncontent-disposition: form-data; name="images"\r\n\r\nx', 400),
        (
            "multipart/form-data; boundary=x",
            b'--x\r\ncontent-disposition: form-data; name="y"\r\n\r\nx\r\n--x--\r\n',
            422,
        ),
        ("multipart/form-data; boundary=x", b"--x--\r\n", 422),
        ("multipart/form-data; boundary=" + "x" * 71, b"", 400),
    ],
)
def test_a_form_that_cannot_be_answered_is_told_why(plain: Running, kind: str | None, body: bytes, status: int) -> None:
    headers = {} if kind is None else {"content-type": kind}
    assert reason(plain.http.post("/v1/classify", content=body, headers=headers), status)


def test_a_request_with_too_many_fields_is_refused(plain: Running) -> None:
    part = b'--x\r\ncontent-disposition: form-data; name="adapter"\r\n\r\ny\r\n'
    headers = {"content-type": "multipart/form-data; boundary=x"}
    answer = plain.http.post("/v1/classify", content=part * 20 + b"--x--\r\n", headers=headers)
    assert "more than 10 fields" in reason(answer, 422)


def test_an_image_in_json_that_is_a_bomb_is_refused(plain: Running) -> None:
    """4 GB of zeros that a PNG's header promises."""
    promised = bytearray(encoded(0))
    promised[16:24] = (40_000).to_bytes(4, "big") + (40_000).to_bytes(4, "big")
    promised[29:33] = zlib.crc32(promised[12:29]).to_bytes(4, "big")
    data = base64.b64encode(promised).decode()
    server = plain
    body = json.dumps({"images": [{"data": data}], "adapter": server.names[0]})
    answer = server.http.post("/v1/classify", content=body, headers={"content-type": "application/json"})
    assert "pixels" in reason(answer, 422)


def test_a_whole_number_may_be_written_as_json_has_it(plain: Running) -> None:
    images = [{"data": base64.b64encode(encoded(0)).decode(), "adapter": plain.names[1]}]
    answers = [plain.http.post("/v1/classify", json={"images": images, "top_k": top}).json() for top in (2, 2.0)]
    assert [len(answer["results"][0]["classes"]) for answer in answers] == [2, 2]


def test_a_place_that_was_not_taken_up_is_free_again(start: Start) -> None:
    engine = start(queue=2).engine
    with pytest.raises(ValueError, match="not decoded"), engine.admit(2):
        raise ValueError("not decoded")
    with engine.admit(2), pytest.raises(Problem, match="waiting"):
        engine.admit(1)
    assert engine.waiting == 0

"""What nobody waits for any more is not computed: whoever asked has gone, or the deadline is over."""

from __future__ import annotations

import threading
from concurrent.futures import CancelledError
from typing import Any

import pytest
from banks import SIZE, network
from httpx import Request
from serve.conftest import Running, Start, encoded
from serve.test_limits import Held, Later, until

from mlx_peft.data.limits import Limits
from mlx_peft.data.reading import decode_image
from mlx_peft.serve import decoding


def asked_and_left(server: Running, files: int) -> int:
    """The status that is counted of whoever closes the connection behind the request."""
    request = Request("POST", "http://127.0.0.1/v1/embed", files=[("images", encoded(at)) for at in range(files)])
    messages = [{"type": "http.request", "body": request.read(), "more_body": False}, {"type": "http.disconnect"}]
    sent: list[Any] = []

    async def receive() -> Any:
        return messages.pop(0) if len(messages) > 1 else messages[0]

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http", "method": "POST", "path": "/v1/embed", "query_string": b"", "scheme": "http",
        "headers": [(name.lower(), value) for name, value in request.headers.raw],
    }  # fmt: skip
    server.http.portal.call(server.http.app, scope, receive, send)
    return int(sent[0]["status"])


def test_of_whoever_has_gone_nothing_more_is_computed(start: Start) -> None:
    server = start(wrap=Held, max_batch=1)
    served = server.engine.served
    with served.held():
        first = Later(server)
        served.begun.wait(20)
        assert asked_and_left(server, 2) == 499
    assert first.status() == 200
    until(lambda: server.engine.waiting == 0)
    assert served.batches == [1]


def test_images_that_nobody_waits_for_are_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    over, read = threading.Event(), []

    def one(data: bytes, name: str) -> Any:
        read.append(name)
        over.set()
        return decode_image(data, name)

    monkeypatch.setattr(decoding, "decode_image", one)
    recipe = network("torch").base.preprocessing
    with pytest.raises(CancelledError):
        decoding.decoded([encoded(0)] * 3, [recipe] * 3, SIZE, Limits(), over)
    assert read == ["images[0]"]


@pytest.mark.parametrize("path", ["/v1/classify", "/v2/models/00-lora/infer"])
def test_the_deadline_begins_behind_the_body_wherever_a_request_waits(start: Start, path: str) -> None:
    server, gate = start(deadline=0.2), threading.Event()
    for _ in range(server.engine.settings.decoders):
        server.http.app.state.answering.pool.submit(gate.wait, 20)  # as large images do
    large = b"[" + b" " * 70_000 + b"]"
    try:
        answer = server.http.post(path, content=large, headers={"content-type": "application/json"})
    finally:
        gate.set()
    assert answer.status_code == 504

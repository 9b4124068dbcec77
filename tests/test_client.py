"""The client: what it sends, what it makes of answers, and what a person reads where there is none."""

from __future__ import annotations

import base64
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from email.parser import BytesParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from mlx_peft import client as module
from mlx_peft.client import Class, Client, ServerError

CAT = {"index": 1, "label": "cat", "probability": 0.75}
ANSWER = {"results": [{"adapter": "pets", "classes": [CAT]}], "milliseconds": {"total": 5.0}}

Reply = tuple[int, dict[str, str], bytes]


def reply(status: int, value: Any, **headers: str) -> Reply:
    return status, {name.replace("_", "-"): text for name, text in headers.items()}, json.dumps(value).encode()


def refusal(status: int, reason: str, **headers: str) -> Reply:
    return reply(status, {"error": {"status": status, "reason": reason}}, **headers)


class Told:
    """A server that says what it is told, one reply after the other, the last for ever; and what it was asked."""

    def __init__(self, *replies: Reply) -> None:
        self.asked: list[tuple[str, str, dict[str, str], bytes]] = []
        told = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                told.asked.append((self.command, self.path, dict(self.headers.items()), body))
                status, headers, content = replies[min(len(told.asked), len(replies)) - 1]
                self.send_response(status)
                for name, value in {"Content-Length": str(len(content)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = do_PUT = do_DELETE = answer

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}"


@contextmanager
def telling(*replies: Reply) -> Iterator[Told]:
    told = Told(*replies)
    threading.Thread(target=told.server.serve_forever, args=(0.01,), daemon=True).start()
    yield told
    told.server.shutdown()
    told.server.server_close()


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long the client would have slept."""
    found: list[float] = []
    monkeypatch.setattr(module.time, "sleep", found.append)
    return found


def parts(asked: tuple[str, str, dict[str, str], bytes]) -> list[tuple[str | None, bytes]]:
    """A form, as Python's own parser of mail reads it: the name and the content of each part."""
    kind = asked[2]["Content-Type"].encode()
    message = BytesParser().parsebytes(b"Content-Type: " + kind + b"\r\n\r\n" + asked[3])
    return [
        (str(part.get_param("name", header="content-disposition")), part.get_payload(decode=True))  # type: ignore[misc]
        for part in message.get_payload()
    ]  # fmt: skip


def test_images_and_adapters_go_as_a_form_without_names_of_files(tmp_path: Path) -> None:
    file = tmp_path / "patient-4711.png"
    file.write_bytes(b"\x89PNG\r\n--")
    with telling(reply(200, ANSWER)) as told:
        Client(told.address).classify([file, b"\0\xff"], ["pets", "birds"], top=3)
    (asked,) = told.asked
    assert asked[:2] == ("POST", "/v1/classify") and b"4711" not in asked[3]
    found = parts(asked)
    images = [("images", b"\x89PNG\r\n--"), ("images", b"\0\xff")]
    assert found == [*images, ("adapter", b"pets"), ("adapter", b"birds"), ("top_k", b"3")]


def test_one_adapter_is_named_once_and_none_not_at_all() -> None:
    with telling(reply(200, ANSWER)) as told:
        Client(told.address).classify([b"1", b"2"], "pets")
        Client(told.address).classify([b"1"])
    assert [[name for name, _ in parts(asked)] for asked in told.asked] == [
        ["images", "images", "adapter", "top_k"],
        ["images", "top_k"],
    ]


def test_a_single_file_is_not_taken_for_a_list_of_letters() -> None:
    with pytest.raises(TypeError, match="brackets"):
        Client().classify("cat.jpg")


def test_answers_are_values_with_types() -> None:
    with telling(reply(200, ANSWER)) as told:
        answers = Client(told.address).classify([b"image"], "pets")
    assert len(answers) == 1 and answers.milliseconds == {"total": 5.0}
    assert answers[0].best == Class(1, "cat", 0.75) and answers[0].adapter == "pets"


def test_embeddings_explanations_and_models() -> None:
    embedded = {"results": [{"adapter": None, "embedding": [1, 2.5]}], "milliseconds": {"total": 1.0}}
    pictures = {"rollout": base64.b64encode(b"PNG").decode()}
    explained = {"adapter": "pets", "classes": [CAT], "of": "cat", "pictures": pictures, "tokens": [5, 3]}
    model = {"name": "pets", "base": "vit", "method": "lora", "classes": ["cat"], "metrics": {"top1": 0.5}}
    replies = (
        reply(200, embedded), reply(200, {"result": explained, "milliseconds": {}}),
        reply(200, {"models": [model | {"loaded": True, "bytes": 7, "later": "more"}]}),
    )  # fmt: skip
    with telling(*replies) as told:
        client = Client(told.address)
        assert client.embed([b"image"])[0].vector == (1.0, 2.5)
        found = client.explain(b"image", "pets")
        (served,) = client.models()
    assert (found.of, found.pictures, found.tokens) == ("cat", {"rollout": b"PNG"}, (5, 3))
    assert (served.name, served.classes, served.loaded, served.bytes) == ("pets", ("cat",), True, 7)


def test_a_name_in_an_address_is_one_part_of_it() -> None:
    with telling(reply(200, {})) as told:
        client = Client(f"{told.address}/behind/a/proxy/", token="secret-of-mine")
        client.load("a/../b c?")
        client.unload("ü")
    assert [asked[:2] for asked in told.asked] == [
        ("PUT", "/behind/a/proxy/v1/models/a%2F..%2Fb%20c%3F"),
        ("DELETE", "/behind/a/proxy/v1/models/%C3%BC"),
    ]
    assert all(asked[2]["Authorization"] == "Bearer secret-of-mine" for asked in told.asked)
    assert "secret" not in repr(client)


def test_a_busy_server_is_asked_again_after_the_time_that_it_names(waits: list[float]) -> None:
    later = "Wed, 21 Oct 2026 07:28:00 GMT"
    busy = [refusal(503, "the queue is full", **more) for more in ({"retry_after": "7"}, {"Retry_After": later}, {})]
    with telling(*busy, reply(200, ANSWER)) as told:
        assert Client(told.address).classify([b"image"])[0].best.label == "cat"
    assert waits == [7.0, 1.0, 1.0] and len({asked[3][40:] for asked in told.asked}) == 1


def test_a_server_that_stays_busy_is_given_up(waits: list[float]) -> None:
    full = pytest.raises(ServerError, match="the queue is full")
    with telling(refusal(503, "the queue is full", Retry_After="9" * 400)) as told, full as caught:
        Client(told.address, retries=2).classify([b"image"])
    assert caught.value.status == 503 and waits == [module.LONGEST_WAIT] * 2 and len(told.asked) == 3


def test_a_refusal_is_the_server_s_own_sentence_and_is_not_repeated(waits: list[float]) -> None:
    refused = refusal(422, "there are no images: send one at least")
    with telling(refused) as told, pytest.raises(ServerError) as caught:
        Client(told.address).classify([])
    assert str(caught.value) == "there are no images: send one at least (status 422)"
    assert (caught.value.status, len(told.asked), waits) == (422, 1, [])


@pytest.mark.parametrize("content", [b"<html>", b"[]", b'{"error": "bad"}', b'{"error": {}}', b"\xff"], ids=repr)
def test_a_proxy_s_refusal_is_a_sentence_too(content: bytes) -> None:
    with telling((502, {}, content)) as told, pytest.raises(ServerError, match=r"Bad Gateway \(status 502\)"):
        Client(told.address).models()


@pytest.mark.parametrize(
    "content",
    [b"", b"<html>", b"[]", b"{}", b'{"models": 3}', b'{"models": [{}]}', b'{"models": [[]]}', b"[" * 100_000],
    ids=["nothing", "HTML", "a list", "an object", "a number", "no keys", "a list inside", "brackets"],
)
def test_what_is_no_answer_of_such_a_server_is_said(content: bytes) -> None:
    with telling((200, {}, content)) as told, pytest.raises(ServerError, match="none of mlx-peft's server"):
        Client(told.address).models()


def test_an_answer_without_end_is_not_read_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST", 1 << 20)
    with telling((200, {}, b" " * (2 << 20))) as told, pytest.raises(ServerError, match="more than 1 MiB"):
        Client(told.address).models()


def test_nobody_is_led_elsewhere_with_a_token() -> None:
    with telling(reply(200, {"models": []})) as other, telling((307, {"Location": f"{other.address}/"}, b"")) as told:
        client = Client(told.address, token="secret-of-mine")
        with pytest.raises(ServerError, match="Temporary Redirect"):
            client.models()
    assert other.asked == []


def test_where_nobody_listens_the_address_is_named() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(ServerError, match=f"{address} does not answer .*: is the server running"):
        Client(address).models()
    assert not Client(address).ready()


def test_a_silent_server_is_given_up() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with pytest.raises(ServerError, match=r"did not answer within 0\.1 seconds"):
            Client(f"http://127.0.0.1:{silent.getsockname()[1]}", timeout=0.1).models()


def test_ready_is_what_the_server_says() -> None:
    with telling(reply(503, {"ready": False}), reply(200, {"ready": True})) as told:
        assert [Client(told.address).ready() for _ in range(2)] == [False, True]


@pytest.mark.parametrize(
    "address", ["127.0.0.1:8000", "file:///etc/passwd", "ftp://host", "http://", "http://me:pw@host"]
)
def test_an_address_of_another_kind_is_refused(address: str) -> None:
    with pytest.raises(ValueError, match="should look like"):
        Client(address)


@pytest.mark.parametrize("port", [0, 65536, "x"])
def test_so_is_a_port_that_there_cannot_be(port: object) -> None:
    with pytest.raises(ValueError, match=r"(?i)port|should look like"):
        Client(f"http://127.0.0.1:{port}")


@pytest.mark.parametrize("token", ["", " ", "two\r\nlines", "ü"], ids=ascii)
def test_a_token_that_no_header_can_hold_is_refused(token: str) -> None:
    with pytest.raises(ValueError, match="printable ASCII"):
        Client(token=token)


def test_it_imports_nothing_but_the_standard_library() -> None:
    """So that its file can be copied."""
    import ast
    import sys

    tree = ast.parse(Path(module.__file__).read_text("utf-8"))
    named = [
        *(alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names),
        *(str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)),
    ]
    assert named and {name.partition(".")[0] for name in named} <= sys.stdlib_module_names

"""Who may ask which adapters: tokens, and what a server answers to whoever has none."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from serve.conftest import Running, Start, begin, encoded

from mlx_peft.core.errors import UserError
from mlx_peft.serve import tokens
from mlx_peft.serve.guard import must_be_called
from mlx_peft.serve.problems import Problem
from mlx_peft.serve.tokens import read_tokens

WARD, CLINIC, ADMIN, STRANGE = ("ward-" + "w" * 20, "clinic-" + "c" * 20, "admin-" + "a" * 20, "strange-" + "s" * 20)


def grants(folder: Path) -> Any:
    file = folder / "tokens.txt"
    file.write_text(f"# who may ask what\n{WARD} 00-lora 01-lora  # the ward\n\n{CLINIC} *\n")
    return read_tokens([file])


def head(token: str | None) -> dict[str, str]:
    return {} if token is None else {"Authorization": f"Bearer {token}"}


@pytest.fixture(scope="module")
def guarded(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with ExitStack() as stack:
        yield begin(stack, folder, tokens=grants(tmp_path_factory.mktemp("tokens")), admin_token=ADMIN)


def asked(server: Running, token: str | None, adapter: str) -> int:
    files = [("images", encoded(0))]
    answer = server.http.post("/v1/classify", files=files, data={"adapter": adapter}, headers=head(token))
    return int(answer.status_code)


@pytest.mark.parametrize(
    ("token", "adapter", "status"),
    [
        (None, "00-lora", 401),
        (STRANGE, "00-lora", 401),
        (WARD, "00-lora", 200),
        (WARD, "01-lora", 200),
        (WARD, "02-vpt", 404),
        (WARD, "no-such", 404),
        (CLINIC, "02-vpt", 200),
        (ADMIN, "02-vpt", 200),
    ],
)
def test_a_token_asks_its_own_adapters_and_learns_of_no_others(
    guarded: Running, token: str | None, adapter: str, status: int
) -> None:
    assert asked(guarded, token, adapter) == status


def test_what_may_not_be_asked_is_told_as_what_is_not_there(guarded: Running) -> None:
    def said(adapter: str) -> str:
        files = [("images", encoded(0))]
        answer = guarded.http.post("/v1/classify", files=files, data={"adapter": adapter}, headers=head(WARD))
        return answer.text.replace(adapter, "NAME")

    assert said("02-vpt") == said("no-such")
    listed = guarded.http.get("/v1/models", headers=head(WARD)).json()["models"]
    assert [model["name"] for model in listed] == ["00-lora", "01-lora"]


@pytest.mark.parametrize(
    ("path", "token", "status"),
    [
        ("/v1/models", None, 401),
        ("/v2/models/00-lora", None, 401),
        ("/v2/models/00-lora", WARD, 200),
        ("/v2/models/02-vpt", WARD, 404),
        ("/metrics", None, 401),
        ("/metrics", WARD, 403),
        ("/metrics", CLINIC, 200),
        ("/v2/health/live", None, 200),
        ("/v2/health/ready", None, 200),
    ],
)
def test_what_names_adapters_needs_a_token_and_probes_need_none(
    guarded: Running, path: str, token: str | None, status: int
) -> None:
    answer = guarded.http.get(path, headers=head(token))
    assert answer.status_code == status
    assert ("www-authenticate" in answer.headers) == (status == 401)


def test_the_scheme_is_bearer_alone(guarded: Running) -> None:
    for header in (WARD, f"Basic {WARD}", "Bearer", f"Bearer {WARD} {WARD}"):
        assert guarded.http.get("/v1/models", headers={"Authorization": header}).status_code == 401
    assert guarded.http.get("/v1/models", headers={"Authorization": f"bearer {WARD}"}).status_code == 200


def test_every_token_is_compared_whole_whichever_is_right(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The time that an answer takes does not tell how much of a token was right, or which."""
    given, seen = grants(tmp_path), []
    compare = tokens.hmac.compare_digest
    monkeypatch.setattr(
        tokens.hmac, "compare_digest", lambda one, other: seen.append(len(other)) or compare(one, other)
    )
    for token in (WARD, CLINIC, STRANGE, ""):
        given.grant(token)
    assert seen == [32] * 8  # digests, of two tokens each time


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("short a", "line 1: a token should be 16 or more"),
        (f"{WARD}", "line 1: behind the token stand the adapters"),
        (f"{WARD} a\n{WARD} b", "line 2: the token is there twice"),
        (f"{WARD} ../a", "line 1: an adapter's name should be text without slashes"),
        ("# nobody\n", "no token in them"),
        ("ä" * 16 + " *", "line 1: a token should be"),
    ],
)
def test_a_file_of_tokens_is_refused_by_the_line_that_is_wrong_and_shows_no_token(
    tmp_path: Path, text: str, reason: str
) -> None:
    (tmp_path / "tokens.txt").write_text(text)
    with pytest.raises(UserError, match=reason) as refused:
        read_tokens([tmp_path / "tokens.txt"])
    assert WARD not in str(refused.value)


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    (tmp_path / "latin").write_bytes(b"\xff" * 20)
    for file in ("none", "latin", ""):
        with pytest.raises(UserError, match=file or "directory"):
            read_tokens([tmp_path / file])


def test_a_page_whose_name_leads_here_is_refused(start: Start) -> None:
    """DNS rebinding: the browser sends the name of the page."""
    server = start(hosts=("127.0.0.1", "[::1]"))
    for host, status in {
        "evil.example": 421,
        "127.0.0.1:8000": 200,
        "127.0.0.1": 200,
        "[::1]:8000": 200,
        "[::1]": 200,
    }.items():
        assert server.http.get("/v2/health/live", headers={"host": host}).status_code == status
    must_be_called("anything", ())
    with pytest.raises(Problem):
        must_be_called("", ("127.0.0.1",))


def test_no_page_of_another_site_has_a_browser_ask_for_it(start: Start) -> None:
    """A form can be sent to any server, without a word of CORS."""

    def asked_from(site: str | None, origin: str, **limits: Any) -> int:
        headers = {"Origin": origin} | ({} if site is None else {"Sec-Fetch-Site": site})
        server = start(**limits)
        assert server.http.get("/v1/models", headers=headers).status_code == 200
        return int(server.http.post("/v1/embed", files=[("images", encoded(0))], headers=headers).status_code)

    page = "https://page.example"
    assert asked_from("cross-site", page) == 403
    assert asked_from("same-site", "http://127.0.0.1:9000") == 403
    assert asked_from("cross-site", page, origins=(page,)) == 200
    assert asked_from("cross-site", "https://other.example", origins=(page,)) == 403
    assert asked_from("cross-site", page, origins=("*",)) == 200
    assert asked_from("same-origin", "http://127.0.0.1:8000") == asked_from(None, page) == 200


def test_no_page_of_another_origin_reads_answers_unless_it_is_asked_for(start: Start) -> None:
    header = {"Origin": "https://page.example"}
    assert "access-control-allow-origin" not in start().http.get("/v1/models", headers=header).headers
    allowed = start(origins=("https://page.example",)).http
    assert allowed.get("/v1/models", headers=header).headers["access-control-allow-origin"] == "https://page.example"
    other = allowed.get("/v1/models", headers={"Origin": "https://other.example"})
    assert "access-control-allow-origin" not in other.headers

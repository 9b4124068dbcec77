"""Downloads from a real server on this machine: whole, continued, wrong, broken."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from mlx_peft.core.errors import UserError
from mlx_peft.data.download import PART, Remote, fetch

CONTENT = np.random.default_rng(0).bytes(300_000)


class Handler(BaseHTTPRequestHandler):
    """Serves CONTENT; what it is to do wrong stands in the path."""

    ranges: list[str | None]
    failures: int

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.ranges.append(wanted)
        if "missing" in self.path:
            self.send_error(404)
            return
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and "whole-only" not in self.path else 0
        if start and start >= len(CONTENT):
            self.send_error(416)
            return
        body = CONTENT[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if "breaking" in self.path and type(self).failures:
            type(self).failures -= 1
            body = body[: len(body) // 2]
        self.wfile.write(body + b"more" * ("longer" in self.path))

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def server() -> Iterator[str]:
    Handler.ranges, Handler.failures = [], 2
    serving = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=serving.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{serving.server_port}"
    serving.shutdown()
    thread.join()
    serving.server_close()


def remote(url: str, content: bytes = CONTENT) -> Remote:
    return Remote(url, len(content), hashlib.sha256(content).hexdigest())


def test_a_file_is_fetched_once_and_announced(server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wanted = remote(f"{server}/set.tar.gz")
    for _ in range(2):
        assert fetch(wanted, tmp_path / "new").read_bytes() == CONTENT
    assert len(Handler.ranges) == 1
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["set.tar.gz"]
    output = capsys.readouterr()
    assert output.out == ""
    assert f"downloading {server}/set.tar.gz (0.3 MiB)" in output.err


def test_those_that_want_a_file_at_once_fetch_it_once(server: str, tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: fetch(remote(f"{server}/set.tar.gz"), tmp_path).read_bytes(), range(4)))
    assert found == [CONTENT] * 4 and Handler.ranges == [None]


def test_an_earlier_part_is_continued(server: str, tmp_path: Path) -> None:
    (tmp_path / f"set.tar.gz{PART}").write_bytes(CONTENT[:1234])
    assert fetch(remote(f"{server}/set.tar.gz"), tmp_path).read_bytes() == CONTENT
    assert Handler.ranges == ["bytes=1234-"]


def test_a_server_that_cannot_continue_is_asked_for_the_whole(server: str, tmp_path: Path) -> None:
    (tmp_path / f"whole-only.gz{PART}").write_bytes(CONTENT[:1234])
    assert fetch(remote(f"{server}/whole-only.gz"), tmp_path).read_bytes() == CONTENT


def test_a_part_that_is_too_long_is_thrown_away(server: str, tmp_path: Path) -> None:
    (tmp_path / f"set.gz{PART}").write_bytes(CONTENT + b"more")
    assert fetch(remote(f"{server}/set.gz"), tmp_path).read_bytes() == CONTENT


def test_a_connection_that_breaks_is_taken_up_again(server: str, tmp_path: Path) -> None:
    assert fetch(remote(f"{server}/breaking.gz"), tmp_path).read_bytes() == CONTENT
    assert Handler.ranges == [None, "bytes=150000-", "bytes=225000-"]


def test_a_connection_that_always_breaks_leaves_a_part_to_continue(server: str, tmp_path: Path) -> None:
    Handler.failures = 99
    with pytest.raises(UserError, match=r"breaking\.gz: cannot be fetched .*by hand"):
        fetch(remote(f"{server}/breaking.gz"), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [f"breaking.gz{PART}"]


def test_the_wrong_content_is_refused_and_removed(server: str, tmp_path: Path) -> None:
    wrong = CONTENT[:-1] + bytes([CONTENT[-1] ^ 1])
    with pytest.raises(UserError, match=r"set\.gz: not the expected file: 300000 bytes, SHA-256"):
        fetch(remote(f"{server}/set.gz", wrong), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_file_that_the_server_does_not_have_is_named(server: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"missing\.gz: cannot be fetched \(Not Found\)"):
        fetch(remote(f"{server}/missing.gz"), tmp_path)
    assert len(Handler.ranges) <= 1, "what sent nothing is not asked again at once"


def test_no_empty_folder_is_left(server: str, tmp_path: Path) -> None:
    for wanted in (
        remote(f"{server}/missing.gz"),
        remote(f"{server}/set.gz", b"other"),
        remote("http://127.0.0.1:9/a"),
    ):
        with pytest.raises(UserError):
            fetch(wanted, tmp_path / "new" / "data")
        assert not list(tmp_path.iterdir())
    (tmp_path / "mine").mkdir()
    with pytest.raises(UserError):
        fetch(remote(f"{server}/missing.gz"), tmp_path / "mine")
    assert (tmp_path / "mine").is_dir(), "one that was there stays"


def test_a_place_that_cannot_be_written_is_named(server: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"file/set\.gz: cannot be written"):
        fetch(remote(f"{server}/set.gz"), tmp_path / "file")


def unknown(url: str, content: bytes = CONTENT) -> Remote:
    return Remote(url, None, md5=hashlib.md5(content).hexdigest())


def test_a_file_of_unknown_size_is_known_by_its_md5(server: str, tmp_path: Path) -> None:
    assert fetch(unknown(f"{server}/set.npz?download=1"), tmp_path).read_bytes() == CONTENT
    assert [path.name for path in tmp_path.iterdir()] == ["set.npz"]
    with pytest.raises(UserError, match=r"other\.npz: not the expected file: 300000 bytes, MD5 .* instead of any, "):
        fetch(unknown(f"{server}/other.npz", b"other"), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["set.npz"]


def test_a_file_of_unknown_size_is_continued_until_the_server_says_so(server: str, tmp_path: Path) -> None:
    assert fetch(unknown(f"{server}/breaking.npz"), tmp_path).read_bytes() == CONTENT
    assert Handler.ranges == [None, "bytes=150000-", "bytes=225000-"]


def test_a_whole_part_of_unknown_size_is_not_fetched_again(server: str, tmp_path: Path) -> None:
    (tmp_path / f"set.npz{PART}").write_bytes(CONTENT)
    assert fetch(unknown(f"{server}/set.npz"), tmp_path).read_bytes() == CONTENT
    assert Handler.ranges == [f"bytes={len(CONTENT)}-"]


@pytest.mark.parametrize("how", ["file", "link"])
def test_a_file_of_the_users_is_neither_continued_nor_overwritten(server: str, tmp_path: Path, how: str) -> None:
    """A browser's own download of the same set, or whatever a link leads to."""
    theirs = tmp_path / "set.tar.gz.part"
    theirs.write_bytes(b"a browser's")
    if how == "link":
        (tmp_path / f"set.tar.gz{PART}").symlink_to(theirs)
        with pytest.raises(UserError, match="cannot be written"):
            fetch(remote(f"{server}/set.tar.gz"), tmp_path)
    else:
        assert fetch(remote(f"{server}/set.tar.gz"), tmp_path).read_bytes() == CONTENT
    assert theirs.read_bytes() == b"a browser's"

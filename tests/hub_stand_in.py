"""A stand-in for the Hugging Face hub on this machine."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import yaml
from huggingface_hub import ModelCardData, constants, file_download

TOKEN = "hf_" + "s" * 34
OWNERS = ("jane", "lab")


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@dataclass
class Repository:
    """Branches, each with its files by name and the commit they are at."""

    private: bool
    branches: dict[str, dict[str, bytes]] = field(default_factory=lambda: {"main": {".gitattributes": b"*"}})
    commits: dict[str, str] = field(default_factory=lambda: {"main": "0" * 40})
    sizes: dict[str, int | None] = field(default_factory=dict)
    """Lengths that are told in place of the true ones."""
    gated: str | None = None
    """Why nobody is given a file: what the hub says with a 401 or 403, GatedRepo or nothing."""

    def at(self, revision: str) -> dict[str, bytes] | None:
        names = {commit: branch for branch, commit in self.commits.items()}
        return self.branches.get(names.get(revision, revision))


class Hub(ThreadingHTTPServer):
    """The part of the hub's HTTP API that writing and reading a model's repository needs."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, Repository] = {}
        self.blobs: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.cut: str | None = None
        """Of requests that match, the connection is cut in the middle of the answer."""
        self.silent: str | None = None
        """Requests that match are not answered."""

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def put(self, name: str, files: dict[str, bytes], private: bool = False) -> Repository:
        self.repositories[name] = Repository(private)
        self.repositories[name].branches["main"] |= files
        self.repositories[name].commits["main"] = sha(repr(sorted(files)).encode())[:40]
        return self.repositories[name]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # a body would wait for the client to acknowledge its headers: 40 ms a request
    server: Hub

    def log_message(self, *_: Any) -> None:
        """Nothing on the terminal."""

    def answer(self, status: int, content: Any = None, code: str | None = None, **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content or {}).encode()
        self.send_response(status)
        for name, value in ({"X-Error-Code": code} if code else {} | headers).items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.server.cut and re.search(self.server.cut, f"{self.command} {self.path}"):
            self.wfile.write(body[: len(body) // 2])
            self.close_connection = True
            return
        if self.command != "HEAD":
            self.wfile.write(body)

    def handle_request(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        path = unquote(urlsplit(self.path).path)
        self.server.requests.append(f"{self.command} {path}")
        if self.server.silent and re.match(self.server.silent, f"{self.command} {path}"):
            self.close_connection = True
            return None
        for pattern, respond in ROUTES:
            if match := re.fullmatch(pattern, f"{self.command} {path}"):
                return respond(self, body, *match.groups())
        return self.answer(404, {"error": f"no such route: {self.command} {path}"})

    do_GET = do_HEAD = do_POST = do_PUT = handle_request

    def known(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def repository(self, name: str) -> Repository | None:
        """The repository, where the asker may see it; otherwise answers as the hub does."""
        found = self.server.repositories.get(name)
        if found is None or (found.private and not self.known()):
            self.answer(404 if self.known() else 401, code="RepoNotFound")
            return None
        return found

    def create(self, body: bytes) -> None:
        wanted = json.loads(body)
        name = f"{wanted['organization']}/{wanted['name']}"
        if not self.known():
            return self.answer(401, {"error": "Invalid username or password."})
        if wanted["organization"] not in OWNERS:
            return self.answer(403, {"error": "You don't have the rights to create a model under this namespace"})
        there = name in self.server.repositories
        if not there:
            private = wanted.get("visibility") == "private" or bool(wanted.get("private"))
            self.server.repositories[name] = Repository(private)
        return self.answer(409 if there else 200, {"url": f"{self.server.address}/{name}"})

    def validate(self, body: bytes) -> None:
        front = json.loads(body)["content"].split("---\n")[1]
        try:
            ModelCardData(**yaml.safe_load(front))
        except Exception as error:
            return self.answer(400, {"errors": [{"message": str(error)}], "warnings": []})
        return self.answer(200, {"errors": [], "warnings": []})

    def info(self, _: bytes, name: str, revision: str | None = None) -> None:
        if (found := self.repository(name)) is None:
            return None
        if (files := found.at(revision or "main")) is None:
            return self.answer(404, code="RevisionNotFound")
        siblings = []
        for file, content in files.items():
            size = found.sizes.get(file, len(content))
            lfs = {"size": size or 0, "sha256": sha(content), "pointerSize": 130} if is_large(file) else None
            siblings.append({"rfilename": file, "size": size, "lfs": lfs})
        commit = found.commits.get(revision or "main", revision)
        return self.answer(200, {"id": name, "sha": commit, "private": found.private, "siblings": siblings})

    def branch(self, body: bytes, name: str, branch: str) -> None:
        if (found := self.repository(name)) is None:
            return None
        if branch in found.branches:
            return self.answer(409)
        assert json.loads(body).get("startingPoint") in (None, found.commits["main"])
        found.branches[branch] = dict(found.branches["main"])
        found.commits[branch] = found.commits["main"]
        return self.answer(200)

    def preupload(self, body: bytes, name: str, revision: str) -> None:
        files = json.loads(body)["files"]
        return self.answer(200, {
            "files": [
                {"path": path, "uploadMode": "lfs" if is_large(path) else "regular", "shouldIgnore": False}
                for path in (file["path"] for file in files)
            ]
        })  # fmt: skip

    def batch(self, body: bytes, name: str) -> None:
        objects = json.loads(body)["objects"]
        actions = [
            {**one, "actions": {"upload": {"href": f"{self.server.address}/blobs/{one['oid']}"}}} for one in objects
        ]
        return self.answer(200, {"transfer": "basic", "objects": actions})

    def blob(self, body: bytes, oid: str) -> None:
        assert sha(body) == oid
        self.server.blobs[oid] = body
        return self.answer(200)

    def commit(self, body: bytes, name: str, revision: str) -> None:
        if (found := self.repository(name)) is None:
            return None
        header, *lines = map(json.loads, body.splitlines())
        if header["value"].get("parentCommit") not in (None, found.commits[revision]):
            return self.answer(412, {"error": "A commit has happened since. Please refresh and try again."})
        if self.server.cut and re.search(self.server.cut, f"POST commit {name}"):
            self.close_connection = True
            return None
        for line in lines:
            value = line["value"]
            content = base64.b64decode(value["content"]) if line["key"] == "file" else self.server.blobs[value["oid"]]
            found.branches[revision][value["path"]] = content
        found.commits[revision] = sha(body)[:40]
        address = f"{self.server.address}/{name}/commit/{found.commits[revision]}"
        return self.answer(200, {"commitUrl": address, "commitOid": found.commits[revision], "success": True})

    def resolve(self, _: bytes, name: str, revision: str, file: str) -> None:
        if (found := self.repository(name)) is None:
            return None
        if found.gated is not None:
            return self.answer(403 if self.known() else 401, code=found.gated or None)
        files = found.at(revision) or {}
        if file not in files:
            return self.answer(404, code="EntryNotFound")
        commit = found.commits.get(revision, revision)
        return self.answer(200, files[file], ETag=f'"{sha(files[file])}"', X_Repo_Commit=commit)


def is_large(name: str) -> bool:
    return name.endswith(".safetensors")


NAME = r"([\w.-]+/[\w.-]+)"
ROUTES = [
    ("POST /api/repos/create", Handler.create),
    ("POST /api/validate-yaml", Handler.validate),
    (f"GET /api/models/{NAME}", Handler.info),
    (f"GET /api/models/{NAME}/revision/(.+)", Handler.info),
    (f"POST /api/models/{NAME}/branch/(.+)", Handler.branch),
    (f"POST /api/models/{NAME}/preupload/(.+)", Handler.preupload),
    (rf"POST /{NAME}\.git/info/lfs/objects/batch", Handler.batch),
    ("PUT /blobs/(.+)", Handler.blob),
    (f"POST /api/models/{NAME}/commit/(.+)", Handler.commit),
    (f"(?:GET|HEAD) /{NAME}/resolve/([^/]+)/(.+)", Handler.resolve),
]


@contextmanager
def standing_in(patch: pytest.MonkeyPatch, folder: Path) -> Iterator[Hub]:
    """A hub that huggingface_hub talks to in the place of the real one, as somebody who is logged in.

    Its cache, which is empty, is in the folder.
    """
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    patch.setattr(constants, "ENDPOINT", server.address)
    template = server.address + "/{repo_id}/resolve/{revision}/{filename}"
    for module in (constants, file_download):  # older releases have a copy in the second
        patch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
    patch.setattr(time, "sleep", lambda _: None)  # between attempts
    patch.setattr(constants, "HF_HUB_CACHE", str(folder / "cache"))
    patch.setattr(constants, "HF_TOKEN_PATH", str(folder / "no-token"))
    patch.setattr(constants, "HF_HUB_OFFLINE", False)
    patch.setattr(
        constants, "HF_HUB_DISABLE_XET", True, raising=False
    )  # a protocol of its own, which only the real hub speaks
    patch.setenv("HF_TOKEN", TOKEN)
    for name, value in (("ENDPOINT", server.address), ("HUB_CACHE", folder / "cache"), ("HUB_DISABLE_XET", 1)):
        patch.setenv(f"HF_{name}", str(value))  # for processes that are started from here
    yield server
    server.shutdown()
    server.server_close()
    thread.join()

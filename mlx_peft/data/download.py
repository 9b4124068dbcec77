"""Fetching a data set's archive: announced, resumable and checksummed, and only when the user asked for it."""

from __future__ import annotations

import hashlib
import http.client
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from mlx_peft.core import system
from mlx_peft.core.errors import UserError
from mlx_peft.core.own import unfollowed
from mlx_peft.core.writing import made

ATTEMPTS = 3
TIMEOUT = 30
"""A connection is given up after so many seconds without an answer, or without a byte."""

MAX_BYTES = 2**35
"""A file whose size nobody has stated has at most so many bytes: the largest of the sets here has 20 GB."""

PART = ".mlx-peft.part"
"""The name of a file that is not fetched whole yet ends so. (A browser's downloads, which may lie there too, end in
.part.)"""

_BLOCK = 2**20


@dataclass(frozen=True)
class Remote:
    """A file on a server, known by the checksum that its authors, or this project, have published.

    size: in bytes; None where it is not known before the server says it. md5: where the authors have no other.
    """

    url: str
    size: int | None
    sha256: str = ""
    md5: str = ""

    @property
    def name(self) -> str:
        return self.url.partition("?")[0].rpartition("/")[2]

    @property
    def megabytes(self) -> str:
        return "size unknown" if self.size is None else f"{self.size / 2**20:.1f} MiB"


def fetch(remote: Remote, folder: Path) -> Path:
    """Downloads a file into a folder, unless it is there, and returns its path.

    What a broken download left (see PART) is continued. The file gets its name only once its size and checksum are
    right. Raises UserError where the server or the disk fails, or where the content is not what it should be.
    """
    target = folder / remote.name
    if target.exists():
        return target
    part = folder / f"{remote.name}{PART}"
    try:
        with made(folder), _alone(folder):
            if not target.exists():
                print(f"downloading {remote.url} ({remote.megabytes}) to {target}", file=sys.stderr)
                _fetch_whole(remote, part)
                os.replace(part, target)
    except OSError as error:
        raise UserError(f"{target}: cannot be written ({error.strerror or error})") from error
    return target


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Waits for other processes that fetch into the folder, as those of one run do, where its file system has locks."""
    if system.WINDOWS:  # where a folder cannot be opened
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with suppress(OSError):
            system.lock(descriptor, wait=True)
        yield
    finally:
        os.close(descriptor)


def _fetch_whole(remote: Remote, part: Path) -> None:
    """Continues the part to its end, over some connections. Raises UserError where it is not what it should be."""
    for attempt in range(1, ATTEMPTS + 1):
        done = _size(part)
        try:
            _continue(remote, part)
            break
        except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError) as error:
            if attempt == ATTEMPTS or _size(part) == done:  # nothing came: it would not the next moment
                raise UserError(
                    f"{remote.url}: cannot be fetched ({getattr(error, 'reason', error)}); try again, "
                    f"which continues, or put {remote.name} into {part.parent} by hand"
                ) from error
    _verify(remote, part)


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _continue(remote: Remote, part: Path) -> None:
    """Appends to the part what it lacks; starts afresh where the server cannot continue."""
    done = _size(part)
    if done == remote.size:
        return
    if done > (remote.size or MAX_BYTES):
        part.unlink()
        done = 0
    request = urllib.request.Request(remote.url, headers={"Range": f"bytes={done}-"} if done else {})
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if done and remote.size is None and error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
            return  # there is no more: the checksum will say whether it is right
        raise
    with response:
        continued = response.status == http.client.PARTIAL_CONTENT
        size = remote.size
        if size is None:
            length = response.headers.get("Content-Length")
            size = None if length is None else (done if continued else 0) + int(length)
        with open(part, "ab" if continued else "wb", opener=unfollowed) as file:
            while file.tell() <= (size or MAX_BYTES) and (block := response.read(_BLOCK)):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
    if size is not None and part.stat().st_size < size:
        raise ConnectionError(f"the connection ended after {part.stat().st_size} of {size} bytes")


def _verify(remote: Remote, part: Path) -> None:
    digest = hashlib.sha256() if remote.sha256 else hashlib.md5(usedforsecurity=False)
    with part.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    if digest.hexdigest() != (remote.sha256 or remote.md5):
        kind = "SHA-256" if remote.sha256 else "MD5"
        found = f"{part.stat().st_size} bytes, {kind} {digest.hexdigest()}"
        part.unlink()
        expected = remote.sha256 or remote.md5
        raise UserError(f"{remote.url}: not the expected file: {found} instead of {remote.size or 'any'}, {expected}")

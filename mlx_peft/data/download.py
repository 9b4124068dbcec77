"""Fetching a data set's archive: announced, resumable and checksummed, and only when the user asked for it."""

from __future__ import annotations

import hashlib
import http.client
import os
import sys
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from mlx_peft.config.errors import UserError

ATTEMPTS = 3
TIMEOUT = 30
"""Seconds without an answer, or without a byte, before a connection is given up."""

_BLOCK = 2**20


@dataclass(frozen=True)
class Remote:
    """A file on a server, known to the byte."""

    url: str
    size: int
    sha256: str

    @property
    def name(self) -> str:
        return self.url.rpartition("/")[2]


def fetch(remote: Remote, folder: Path) -> Path:
    """Downloads a file into a folder, unless it is there, and returns its path.

    What a broken download left (``NAME.part``) is continued. The file gets its name only once its size and SHA-256 are
    right. Raises UserError where the server or the disk fails, or where the content is not what it should be.
    """
    target = folder / remote.name
    if target.exists():
        return target
    part = folder / f"{remote.name}.part"
    print(f"downloading {remote.url} ({remote.size / 2**20:.1f} MiB) to {target}", file=sys.stderr)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for attempt in range(1, ATTEMPTS + 1):
            try:
                _continue(remote, part)
                break
            except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError) as error:
                if attempt == ATTEMPTS:
                    raise UserError(
                        f"{remote.url}: cannot be fetched ({getattr(error, 'reason', error)}); try again, "
                        f"which continues, or put {remote.name} into {folder} by hand"
                    ) from error
        _verify(remote, part)
        os.replace(part, target)
    except OSError as error:
        raise UserError(f"{target}: cannot be written ({error.strerror or error})") from error
    return target


def _continue(remote: Remote, part: Path) -> None:
    """Appends to the part what it lacks; starts afresh where the server cannot continue."""
    done = part.stat().st_size if part.exists() else 0
    if done == remote.size:
        return
    if done > remote.size:
        part.unlink()
        done = 0
    request = urllib.request.Request(remote.url, headers={"Range": f"bytes={done}-"} if done else {})
    with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
        continued = response.status == http.client.PARTIAL_CONTENT
        with part.open("ab" if continued else "wb") as file:
            while file.tell() <= remote.size and (block := response.read(_BLOCK)):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
    if part.stat().st_size < remote.size:
        raise ConnectionError(f"the connection ended after {part.stat().st_size} of {remote.size} bytes")


def _verify(remote: Remote, part: Path) -> None:
    digest = hashlib.sha256()
    with part.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    if digest.hexdigest() != remote.sha256:
        found = f"{part.stat().st_size} bytes, SHA-256 {digest.hexdigest()}"
        part.unlink()
        raise UserError(f"{remote.url}: not the expected file: {found} instead of {remote.size}, {remote.sha256}")

"""What was found of image files, so that they need not be decoded on every opening: by path, size and times.

A memory belongs to a data set as a configuration names it, and holds a number for each image that was read, of 64 bits
of a hash, and no name; of one that is compared with others also what is seen in it. It is written whole, by whichever
process was last, and what is damaged, or stems from other rules of reading, counts as nothing. A file whose path, size
and times are those that were checked is trusted; an image that cannot be read after all ends the trust in all of them.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

from mlx_peft.config import schema
from mlx_peft.core.own import own_folder, unfollowed
from mlx_peft.core.writing import replace_own
from mlx_peft.data.limits import limits

MAGIC = b"mlx-peft checked 1\n"
LIMIT = 2**28
"""All memories in a folder have at most so many bytes; beyond, those go that were not read for longest."""
STALE = 3600.0
"""After so many seconds what was left unfinished is taken for a killed process's."""

WHOLE, SEEN = "whole", "seen"
"""The kinds of memories: which images can be read; and what is seen in them, for near-duplicates."""
WIDTH = {WHOLE: 0, SEEN: 281}
"""So many bytes are kept of an image beside its mark: for SEEN a pixel hash, whether there is a glance, and it."""

_NAME = re.compile(r"[0-9a-f]{40}\.(whole|seen)(-[0-9]+-[0-9]+\.part)?")
_DIGEST = 32


@dataclass(eq=False)
class Memory:
    """The memory of one kind for one configuration. Where its folder cannot be used, nothing is remembered."""

    path: Path | None
    kind: str
    marks: np.ndarray = field(default_factory=lambda: np.empty(0, np.uint64))
    """uint64 ``(n,)``, ascending."""
    records: np.ndarray = field(default_factory=lambda: np.empty((0, 0), np.uint8))
    """uint8 ``(n, width)``."""

    @classmethod
    def of(cls, config: schema.Data, kind: str) -> Memory:
        """What is remembered of the set that a configuration names."""
        named = [config.name, config.variant, os.path.abspath(config.root), config.columns.model_dump_json()]
        key = hashlib.sha256(repr(named).encode("utf-8", "surrogateescape")).hexdigest()[:40]
        try:
            memory = cls(own_folder("checked", config.cache.folder) / f"{key}.{kind}", kind)
        except (OSError, RuntimeError):
            return cls(None, kind)
        memory._load()
        return memory

    def find(self, marks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Which of the marks are known, bool ``(m,)``, and the records of those, uint8 ``(known, width)``."""
        place = np.searchsorted(self.marks, marks)
        place[place == len(self.marks)] = 0
        known = (self.marks[place] == marks) if len(self.marks) else np.zeros(len(marks), bool)
        return known, self.records[place[known]]

    def keep(self, marks: np.ndarray, records: np.ndarray | None = None) -> None:
        """Remembers this in the place of what was remembered. What cannot be written is forgotten."""
        rows = np.empty((len(marks), 0), np.uint8) if records is None else records
        marks, first = np.unique(marks, return_index=True)
        self.marks, self.records = marks, rows[first]
        content = b"".join((MAGIC, rules(), marks.astype("<u8").tobytes(), self.records.tobytes()))
        if self.path is None or len(content) > LIMIT:
            return
        with suppress(OSError):
            replace_own(self.path, content + hashlib.blake2b(content, digest_size=_DIGEST).digest())
            _tidy(self.path.parent)

    def forget(self) -> None:
        """Of an image that was readable and is not: nothing is trusted any longer."""
        if self.path is not None:
            with suppress(OSError):
                self.path.unlink()

    def _load(self) -> None:
        assert self.path is not None
        head, each = MAGIC + rules(), 8 + WIDTH[self.kind]
        try:
            with open(self.path, "rb", opener=unfollowed) as file:
                content = file.read(LIMIT + _DIGEST + 1)
                os.utime(file.fileno())
        except OSError:
            return
        body = content[len(head) : -_DIGEST]
        digest = hashlib.blake2b(content[:-_DIGEST], digest_size=_DIGEST).digest()
        if not content.startswith(head) or content[-_DIGEST:] != digest or len(body) % each:
            return
        count = len(body) // each
        self.marks = np.frombuffer(body, "<u8", count).astype(np.uint64)
        self.records = np.frombuffer(body, np.uint8, offset=8 * count).reshape(count, each - 8)


def mark(*facts: object) -> int:
    """64 bits of a hash of what tells an image from every other, and from itself once it is changed."""
    text = "\0".join(map(str, facts)).encode("utf-8", "surrogateescape")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


def file_mark(path: str) -> int:
    """Of a file as it is now; of one that cannot be asked, of nothing that comes again."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return mark(path, time.time_ns())
    return mark(path, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def seen_record(pixels: bytes, glance: bytes | None) -> np.ndarray:
    """A pixel hash and a glance as uint8 ``(281,)``."""
    content = pixels + bytes([glance is not None]) + (glance or bytes(264))
    return np.frombuffer(content, np.uint8)


def seen_of(record: np.ndarray) -> tuple[bytes, bytes | None]:
    """The reverse of ``seen_record``."""
    return record[:16].tobytes(), record[17:].tobytes() if record[16] else None


def rules() -> bytes:
    """32 bytes that change with what decides whether an image is readable, and to which pixels."""
    return hashlib.blake2b("\0".join(_rules()).encode(), digest_size=32).digest()


def _rules() -> Sequence[str]:
    from mlx_peft.data import reading

    found = [str(reading.RULES), repr(limits())]
    for package in ("mlx-peft", "numpy", "pillow", "scipy", "simplejpeg"):
        with suppress(PackageNotFoundError):
            found.append(f"{package} {version(package)}")
    return found


def _tidy(folder: Path) -> None:
    """Deletes what killed processes left, and the memories that were not read for longest beyond LIMIT."""
    found = []
    for entry in os.scandir(folder):
        if not _NAME.fullmatch(entry.name) or not entry.is_file(follow_symlinks=False):
            continue
        with suppress(OSError):
            status = entry.stat(follow_symlinks=False)
            if not entry.name.endswith(".part"):
                found.append((status.st_mtime_ns, status.st_size, entry.path))
            elif time.time() - status.st_mtime > STALE:
                os.unlink(entry.path)
    used = sum(size for _, size, _ in found)
    for _, size, path in sorted(found):
        if used <= LIMIT:
            break
        with suppress(OSError):
            os.unlink(path)
        used -= size

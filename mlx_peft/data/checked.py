"""What was found of image files, so that they need not be decoded on every opening: by path, size and times.

A memory belongs to a data set as a configuration names it, and holds a number for each image that was read, of 64 bits
of a hash, and no name; of one that is compared with others also what is seen in it. It is written whole, by whichever
process was last, and what is damaged, or stems from other rules of reading, counts as nothing. A file whose path, size
and times are those that were checked is trusted; an image that cannot be read after all ends the trust in all of them.
Marks are held in memory; records, which of a million images are 300 MB, go from and to the file some at a time.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from mlx_peft.config.data import Data
from mlx_peft.core.own import fresh, own_folder, unfollowed
from mlx_peft.core.versions import version_of
from mlx_peft.core.writing import in_place_of, part_of
from mlx_peft.data.limits import limits
from mlx_peft.data.seen import LOOK, RECORD

MAGIC = b"mlx-peft checked 1\n"
LIMIT = 2**30
"""All memories in a folder have at most so many bytes; beyond, those go that were not read for longest. What is seen in
ImageNet's 1.28 million images takes 370 million."""
BLOCK = 2**14
"""So many records are read or written at a time."""
STALE = 3600.0
"""After so many seconds what was left unfinished is taken for a killed process's."""

WHOLE, SEEN, BEGUN = "whole", "seen", "begun"
"""The kinds of memories: which images can be read; what is seen in them, for near-duplicates; and what a look at all of
them that is not at its end has found so far."""
WIDTH = {WHOLE: 0, SEEN: RECORD.itemsize, BEGUN: LOOK.itemsize}
"""So many bytes are kept of an image beside its mark: nothing, a RECORD, a LOOK."""

_NAME = re.compile(r"[0-9a-f]{40}\.(whole|seen|begun)(-[0-9]+-[0-9]+\.part)?")
_DIGEST = 32


class _Damaged(Exception):
    """A memory is not what was written."""


@dataclass(frozen=True)
class Memory:
    """The memory of one kind for one configuration. Where its folder cannot be used, nothing is remembered."""

    path: Path | None
    kind: str

    @classmethod
    def of(cls, config: Data, kind: str) -> Memory:
        """What is remembered of the set that a configuration names."""
        named = [config.name, config.variant, os.path.abspath(config.root), config.columns.model_dump_json()]
        key = hashlib.sha256(repr(named).encode("utf-8", "surrogateescape")).hexdigest()[:40]
        try:
            return cls(own_folder("checked", config.cache.folder) / f"{key}.{kind}", kind)
        except (OSError, RuntimeError):
            return cls(None, kind)

    @property
    def marks(self) -> np.ndarray:
        """Of all that is remembered, uint64 ``(n,)``, ascending."""
        return self._read(lambda first, records: None)

    def find(self, marks: np.ndarray, into: np.ndarray | None = None) -> np.ndarray:
        """Which of the marks are known, bool ``(m,)``; their records are put into their rows of ``into``.

        into: ``(m,)``, of the kind's own type. The rows of the others are not to be looked at.
        """
        order = np.argsort(marks)
        wanted = marks[order]
        rows = None if into is None else into.view(np.uint8).reshape(len(marks), WIDTH[self.kind])

        def put(there: np.ndarray, records: np.ndarray) -> None:
            """The records of some marks, where they are wanted."""
            if rows is None or not len(there):
                return
            some = slice(np.searchsorted(wanted, there[0]), np.searchsorted(wanted, there[-1], "right"))
            place = np.searchsorted(there, wanted[some])
            known = there[place] == wanted[some]
            rows[order[some][known]] = records[place[known]]

        known = np.zeros(len(marks), bool)
        there = self._read(put)
        if len(there):
            place = np.searchsorted(there, marks)
            known = there[np.minimum(place, len(there) - 1)] == marks
        return known

    def keep(self, marks: np.ndarray, records: np.ndarray | None = None, among: np.ndarray | None = None) -> None:
        """Remembers this in the place of what was remembered. What cannot be written is forgotten.

        Args:
            marks: uint64 ``(n,)``. records: ``(n,)``, of the kind's own type.
            among: bool ``(n,)``, of which of them; of all where it is None.
        """
        chosen = np.arange(len(marks)) if among is None else np.flatnonzero(among)
        marks, order = np.unique(marks[chosen], return_index=True)
        order = chosen[order]
        width = WIDTH[self.kind]
        if self.path is None or len(marks) * (8 + width) + 2 * _DIGEST + len(MAGIC) > LIMIT:
            return
        rows = np.empty((0, 0), np.uint8) if records is None else records.view(np.uint8).reshape(len(records), width)
        blocks = range(0, len(marks) if width else 0, BLOCK)
        digest = hashlib.blake2b(digest_size=_DIGEST)
        with suppress(OSError):
            with in_place_of(self.path, part_of(self.path)) as unfinished, fresh(unfinished) as file:
                file.write(head := MAGIC + rules() + marks.astype("<u8").tobytes())
                digest.update(head)
                for at in blocks:
                    file.write(block := rows[order[at : at + BLOCK]].tobytes())
                    digest.update(block)
                file.write(digest.digest())
            _tidy(self.path.parent)

    def forget(self) -> None:
        """Nothing is trusted any longer: an image that was readable is not; or what was begun is done."""
        if self.path is not None:
            with suppress(OSError):
                self.path.unlink()

    def _read(self, put: Callable[[np.ndarray, np.ndarray], None]) -> np.ndarray:
        """All marks, ascending; some of them at a time are ``put`` with their records, uint8 ``(some, width)``.

        Empty where the file is not there, or not what was written: what was put before that is found is to be passed
        over then.
        """
        with suppress(OSError, _Damaged):
            if self.path is not None:
                with open(self.path, "rb", opener=unfollowed) as file:
                    return self._believed(file, put)
        return np.empty(0, np.uint64)

    def _believed(self, file: BinaryIO, put: Callable[[np.ndarray, np.ndarray], None]) -> np.ndarray:
        """As ``_read``, of an open file. Raises _Damaged."""
        head, width, digest = MAGIC + rules(), WIDTH[self.kind], hashlib.blake2b(digest_size=_DIGEST)

        def taken(size: int) -> bytes:
            content = file.read(size)
            if len(content) < size:
                raise _Damaged
            digest.update(content)
            return content

        size = os.fstat(file.fileno()).st_size
        count, rest = divmod(size - len(head) - _DIGEST, 8 + width)
        if size > LIMIT + _DIGEST or rest or count < 0 or taken(len(head)) != head:
            raise _Damaged
        marks = np.frombuffer(taken(8 * count), "<u8").astype(np.uint64)
        for first in range(0, count if width else 0, BLOCK):
            some = marks[first : first + BLOCK]
            put(some, np.frombuffer(taken(width * len(some)), np.uint8).reshape(len(some), width))
        if file.read() != digest.digest():
            raise _Damaged
        os.utime(file.fileno())
        return marks


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


def rules() -> bytes:
    """32 bytes that change with what decides whether an image is readable, and to which pixels."""
    return hashlib.blake2b("\0".join(_rules()).encode(), digest_size=32).digest()


def _rules() -> Sequence[str]:
    from mlx_peft.data import reading

    found = [str(reading.RULES), repr(limits())]
    for package in ("mlx-peft", "numpy", "pillow", "scipy", "simplejpeg"):
        if (version := version_of(package)) is not None:
            found.append(f"{package} {version}")
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

"""Files out of a table, each different one written once into a single file of our own, of which any is read at random.

The file: the contents one after the other; where each row's begins and how long it is (-1: there is none); and an end
that says how many rows there are, what they were unpacked from, and the hash of all that is not content.
"""

from __future__ import annotations

import hashlib
import os
import re
import struct
import tempfile
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from mlx_peft.core import system
from mlx_peft.core.own import fresh, own_folder, unfollowed
from mlx_peft.core.writing import in_place_of, part_of

MAGIC = b"mlx-peft unpacked 1\n"
_END = struct.Struct(f"<qQ16s{len(MAGIC)}s")
"""The file ends with its rows, the mark of what was unpacked, a hash, and MAGIC."""
STALE = 3600.0
"""After so many seconds what is half written, and no longer written to, is taken for a killed process's."""
_UNFINISHED = re.compile(r"[0-9a-f]{16}-[0-9]+-[0-9]+\.part")


@dataclass(eq=False)
class Unpacked:
    """An open file of contents; safe to read from several threads. It stays readable when another takes its place."""

    file: BinaryIO
    starts: np.ndarray
    lengths: np.ndarray

    def __len__(self) -> int:
        return len(self.starts)

    def read(self, row: int) -> bytes | None:
        """A row's content; None where it has none."""
        length = int(self.lengths[row])
        return None if length < 0 else system.read_at(self.file.fileno(), length, int(self.starts[row]))


def unpacked(key: int, stamp: int, parts: Iterable[tuple[np.ndarray, list[bytes]]], folder: Path | None) -> Unpacked:
    """What was unpacked before under ``key``, if it was from the same, as ``stamp`` says; or unpacks it.

    Args:
        parts: some rows each: which of the contents each has, int ``(rows,)``, -1 for none, and the contents.
        folder: of the user's, for what is kept. Where none can be used, nothing is.

    Raises OSError where there is no room.
    """
    try:
        place = own_folder("unpacked", folder) / f"{key:016x}"
    except (OSError, RuntimeError):
        return _written(tempfile.TemporaryFile(), stamp, parts)
    if (found := _opened(place, stamp)) is not None:
        return found
    _sweep(place.parent)
    with in_place_of(place, part_of(place)) as unfinished:
        _written(fresh(unfinished), stamp, parts).file.close()
    if (found := _opened(place, stamp)) is None:
        raise OSError(f"{place} is not what was written")
    return found


def _opened(place: Path, stamp: int) -> Unpacked | None:
    try:
        file = open(place, "rb", opener=unfollowed)  # noqa: SIM115
    except OSError:
        return None
    try:
        size = os.fstat(file.fileno()).st_size
        count, of, digest, magic = _END.unpack(system.read_at(file.fileno(), _END.size, max(size - _END.size, 0)))
        begin = size - _END.size - 16 * count
        if magic == MAGIC and of == stamp and count >= 0 and begin >= 0:
            table = system.read_at(file.fileno(), 16 * count, begin)
            if _hash(table, stamp) == digest:
                starts, lengths = np.frombuffer(table, "<i8").reshape(2, count)
                return Unpacked(file, starts, lengths)
    except (OSError, struct.error):
        pass
    file.close()
    return None


def _written(file: BinaryIO, stamp: int, parts: Iterable[tuple[np.ndarray, list[bytes]]]) -> Unpacked:
    """Each different content once: what repeats an image a million times takes the room of one."""
    places: dict[bytes, tuple[int, int]] = {}
    rows: list[np.ndarray] = []
    end = 0
    for which, contents in parts:
        found = np.full((len(contents) + 1, 2), (0, -1), np.int64)  # the last is for none
        for number, content in enumerate(contents):
            digest = hashlib.blake2b(content, digest_size=16).digest()
            if digest not in places:
                file.write(content)
                places[digest] = end, len(content)
                end += len(content)
            found[number] = places[digest]
        rows.append(found[which])
    table = np.concatenate(rows) if rows else np.empty((0, 2), np.int64)
    starts, lengths = np.ascontiguousarray(table.T)
    data = starts.astype("<i8").tobytes() + lengths.astype("<i8").tobytes()
    file.write(data)
    file.write(_END.pack(len(table), stamp, _hash(data, stamp), MAGIC))
    file.flush()
    return Unpacked(file, starts, lengths)


def _hash(table: bytes, stamp: int) -> bytes:
    return hashlib.blake2b(table, digest_size=16, salt=stamp.to_bytes(8, "little")).digest()


def _sweep(folder: Path) -> None:
    for entry in os.scandir(folder):
        if _UNFINISHED.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
            with suppress(OSError):
                if time.time() - entry.stat(follow_symlinks=False).st_mtime > STALE:
                    os.unlink(entry.path)

"""Decoded images on disk, so that a second epoch decodes nothing: one file an image, mapped into memory or read.

An entry's name is a hash of which file it was (path, size, times) and what was done to it: a file that changed has
another, and nothing is ever changed in place. Entries are written beside and renamed, so that a killed run leaves none
by halves, and runs that share a cache find each other's at once. The bytes in use stand in a file of their own; one run
at a time counts up and writes: one that is killed in between leaves the count too high, never too low, and the next one
to open the cache counts anew. All of it lies in a folder of its own, and no link in there is followed.
"""

from __future__ import annotations

import errno
import hashlib
import mmap
import os
import re
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from weakref import WeakSet

import numpy as np
from PIL import Image

from mlx_peft.core import system
from mlx_peft.core.errors import UserError
from mlx_peft.core.own import open_own, unfollowed
from mlx_peft.core.writing import replace_own
from mlx_peft.data.reading import RULES

HEADER = struct.Struct("<4sIII")
"""An entry begins with magic, height, width and the CRC-32 of the pixels, which follow row by row."""
MAGIC = b"MPD1"
SUFFIX = ".rgb"
COUNT, COUNTED = "mlx-peft-decoded.count", b"bytes in mlx-peft's cache of decoded images: "
"""The file that says how much is in use, and how it begins; 16 digits follow."""
SHARD, ENTRY = re.compile(r"[0-9a-f]{2}"), re.compile(r"([0-9a-f]{2})[0-9a-f]{38}(\.rgb|(\.rgb-[0-9]+)?-[0-9]+\.part)")
"""The cache calls its own folders and files so: whatever else lies in its folder is not its to count or delete."""
STALE = 3600.0
"""After so many seconds what was left unfinished is taken for a killed run's."""
MAPPED = 32_768
"""So many images stay mapped once read, in all caches of a process together; the others are read each time.

Linux allows a process 65,530 mappings. Half of them are left to what else maps: libraries, the stacks of threads, and
every large array, which without one would be refused its memory.
"""


class Cache:
    """A folder of decoded images of at most so many bytes; safe to use from several threads and processes."""

    def __init__(self, folder: Path, limit: int, side: int | None, *, tidy: bool = True) -> None:
        """Counts what is there, and makes room by deleting what has not been read for longest; unless another has.

        Raises UserError where the folder cannot be made or written to.
        """
        self.folder, self.limit, self.side = folder, limit, side
        self._verified: set[str] = set()
        self._mapped: dict[str, np.ndarray] = {}
        self._lock = threading.Lock()
        self._full = False
        with _opened_lock:
            _opened.add(self)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if folder.is_symlink():
                raise OSError(errno.ELOOP, "it is a link, and none is followed")
            if tidy:
                with self._counter() as counter:
                    counter.write(self._tidied())
        except OSError as error:
            raise UserError(f"data.cache.folder: {folder} cannot be used ({error.strerror or error})") from error

    def __reduce__(self) -> tuple[Callable[..., Cache], tuple[Path, int, int | None]]:
        """In another process it is another one, of the same folder."""
        return _joined, (self.folder, self.limit, self.side)

    def read(self, path: str, decode: Callable[[], np.ndarray]) -> np.ndarray:
        """The image in a file, shrunk to `side`: out of the cache, or by `decode`, and kept.

        What has been read stays as it is until the cache is opened again, whatever becomes of the file or the entry.
        """
        image = self._mapped.get(path)
        if image is not None:
            return image
        try:
            key = self.key(path)
        except OSError:
            return decode()  # which says what is wrong with it
        stays = _mapped_count() < MAPPED
        image = self.get(key, mapped=stays)
        if image is None:
            image = shrunk(decode(), self.side)
            self.put(key, image)
        elif stays:
            self._mapped[path] = image
        return image

    def key(self, path: str) -> str:
        """Of the image in a file as it is now. Raises OSError where there is no such file."""
        status = os.stat(path)
        identity = f"{path}\0{status.st_size}\0{status.st_mtime_ns}\0{status.st_ctime_ns}\0{self.side}\0{RULES}"
        return hashlib.sha256(identity.encode("utf-8", "surrogateescape")).hexdigest()[:40]

    def get(self, key: str, *, mapped: bool = False) -> np.ndarray | None:
        """The image, uint8 ``(height, width, 3)``, read-only; None where it is not there, or damaged.

        A mapped one costs more to make and nothing to use again; otherwise it is read into memory of its own.
        """
        place = f"{self.folder}/{key[:2]}/{key}{SUFFIX}"
        try:
            with open(place, "rb", buffering=0, opener=unfollowed) as opened:
                file = opened.fileno()
                return self._image(key, file, _map(file) if mapped else _read(file))
        except (OSError, ValueError):  # the latter of an empty one
            return None

    def _image(self, key: str, file: int, content: np.ndarray) -> np.ndarray | None:
        """The image in an entry's bytes; None where they are damaged."""
        if len(content) < HEADER.size:
            return None
        magic, height, width, checksum = HEADER.unpack_from(content.data)
        if magic != MAGIC or len(content) != HEADER.size + height * width * 3:
            return None
        pixels = content[HEADER.size :]
        if key not in self._verified:
            # Once a process: renaming outlives a kill, but what a power cut leaves may have holes.
            if zlib.crc32(pixels.data) != checksum:
                return None
            with suppress(OSError):  # another run owns the file: it is mapped all the same
                os.utime(file)
            self._verified.add(key)
        return pixels.reshape(height, width, 3)

    def put(self, key: str, image: np.ndarray) -> None:
        """Keeps an image, where there is room for it. A full disk only ends the keeping."""
        if self._full:
            return
        data = np.ascontiguousarray(image).tobytes()
        size = HEADER.size + len(data)
        place = self._place(key)
        try:
            with self._counter() as counter:
                used = counter.read()
                if used + size > self.limit:
                    self._full = True
                    return
                counter.write(used + size)
                place.parent.mkdir(exist_ok=True)
                if place.parent.is_symlink():
                    raise OSError(errno.ELOOP, "a link in the cache is not followed")
                if place.is_fifo():  # no writer replaces what is no file, and this folder is ours
                    place.unlink()
                replace_own(place, HEADER.pack(MAGIC, image.shape[0], image.shape[1], zlib.crc32(data)) + data)
            self._verified.add(key)
        except OSError:
            self._full = True

    def _place(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}{SUFFIX}"

    @contextmanager
    def _counter(self) -> Iterator[_Counter]:
        """The bytes in use, held against other threads and processes."""
        with self._lock, os.fdopen(open_own(self.folder / COUNT, COUNTED), "r+b") as file:
            system.lock(file.fileno(), wait=True)
            yield _Counter(file.fileno())

    def _tidied(self) -> int:
        """Bytes of the entries that stay: unfinished ones go, and the longest unread where room is short."""
        found: list[tuple[float, int, str]] = []
        now = time.time()
        for shard in os.scandir(self.folder):
            if not SHARD.fullmatch(shard.name) or not shard.is_dir(follow_symlinks=False):
                continue
            for entry in os.scandir(shard.path):
                name = ENTRY.fullmatch(entry.name)
                if name is None or name[1] != shard.name or not entry.is_file(follow_symlinks=False):
                    continue
                try:
                    status = entry.stat(follow_symlinks=False)
                    if entry.name.endswith(SUFFIX):
                        found.append((status.st_mtime, status.st_size, entry.path))
                    elif now - status.st_mtime > STALE:
                        os.unlink(entry.path)
                except FileNotFoundError:  # another run was quicker
                    continue
        used = sum(size for _, size, _ in found)
        if used > 0.9 * self.limit:
            for _, size, path in sorted(found):
                if used <= 0.9 * self.limit:
                    break
                Path(path).unlink(missing_ok=True)  # who has it mapped keeps it
                used -= size
        return used


@lru_cache(maxsize=8)
def _joined(folder: Path, limit: int, side: int | None) -> Cache:
    return Cache(folder, limit, side, tidy=False)


_opened: WeakSet[Cache] = WeakSet()
_opened_lock = threading.Lock()


def _mapped_count() -> int:
    """Of all caches that are in use in this process."""
    with _opened_lock:
        return sum(len(cache._mapped) for cache in _opened)


def _map(file: int) -> np.ndarray:
    """A file's bytes, mapped. Raises OSError where that fails, ValueError where it is empty."""
    return np.frombuffer(mmap.mmap(file, 0, access=mmap.ACCESS_READ), np.uint8)


def _read(file: int) -> np.ndarray:
    """A file's bytes in memory of their own; fewer than its size where it ends early. Raises OSError."""
    content = np.empty(os.fstat(file).st_size, np.uint8)
    done = 0
    while done < len(content) and (read := system.read_into(file, content[done:].data)):
        done += read
    content.flags.writeable = False
    return content[:done]


@dataclass(frozen=True)
class _Counter:
    file: int

    def read(self) -> int:
        digits = system.read_at(self.file, 16, len(COUNTED))
        return int(digits) if digits.isdigit() else 0

    def write(self, value: int) -> None:
        system.write_at(self.file, COUNTED + b"%016d\n" % value, 0)


def shrunk(image: np.ndarray, side: int | None) -> np.ndarray:
    """The image with its shorter side at most `side`, by Pillow's bicubic filter; as it is where that is None."""
    height, width = image.shape[:2]
    shorter = min(height, width)
    if side is None or shorter <= side:
        return image
    size = max(side, width * side // shorter), max(side, height * side // shorter)
    return np.asarray(Image.fromarray(np.ascontiguousarray(image)).resize(size, Image.Resampling.BICUBIC))

"""Writing to disk so that what is there is whole: staged beside its place, and moved there in one stroke.

Files that fit into memory are written by ``write_whole``, larger ones by ``in_place_of``, folders by ``new_folder``,
and what another library writes by its path into a folder of ``staging``. What a killed process left of these is removed
by the next one that stages beside it: a folder is known by its name and the file in it, and in use as long as a living
process has that file locked.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
import threading
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from safetensors import SafetensorError

from mlx_peft.core import system
from mlx_peft.core.errors import UserError
from mlx_peft.core.own import fresh
from mlx_peft.core.standing import passage

SUFFIX = ".partial"
"""A staging folder's name ends with it: ``.model.k3x9_2ab.partial`` becomes ``model``."""

LOCK, OURS = ".lock", b"a folder of mlx-peft's, removed once the process that locks this file is gone\n"
"""The file that a staging folder is known by, and what it says."""

OLD = "old"
"""An earlier target waits under this name, inside a staging folder, until the new one has its place."""


class DiskFull(UserError):
    """There is no room for what was to be written. Whoever knows how to go on afterwards says it."""


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turns what the disk, or safetensors, refuses in the block, which writes to ``path``, into a UserError."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(f"{path}: cannot be written: no space left on the device") from error
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from error
    except SafetensorError as error:
        raise UserError(f"{path}: cannot be written: {error}") from error


def write_whole(path: Path, content: bytes) -> None:
    """Puts ``content`` in the place of ``path`` in one stroke: a reader sees the old file or the new one, whole.

    Raises UserError where it cannot be written; the old file then stays as it was, and nothing else is left behind.
    What a process killed in the middle leaves, a hidden file beside it, is overwritten by the next one.
    """
    write_together({path: content})


def write_together(files: Mapping[Path, bytes]) -> None:
    """As ``write_whole``, for files that belong together: where there is no room for all of them, none is changed."""
    with ExitStack() as stack:
        for path, content in reversed([*files.items()]):  # which take their places in their order
            stack.enter_context(disk_errors(path))
            unfinished = stack.enter_context(in_place_of(path, path.with_name(f".{path.name}.tmp")))
            with fresh(unfinished) as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())


def replace_own(path: Path, content: bytes) -> None:
    """Puts ``content`` in the place of a file of ours, which a cache may lose: it need not be on the disk.

    Raises OSError, with nothing left behind. Several threads and processes may write the same file.
    """
    with in_place_of(path, part_of(path)) as unfinished, fresh(unfinished) as file:
        file.write(content)


def part_of(path: Path) -> Path:
    """Where this thread writes what is to become ``path``: nobody else writes there."""
    return path.with_name(f"{path.name}-{os.getpid()}-{threading.get_ident()}.part")


@contextmanager
def in_place_of(path: Path, unfinished: Path, previous: Path | None = None) -> Iterator[Path]:
    """``unfinished``, for the block to write; it takes the place of ``path`` in one stroke, or vanishes at any error.

    Args:
        previous: where the file that was there is kept, in the place of an older one. A process that is killed between
            the two moves leaves that one alone.

    Raises:
        OSError: at once, where a device or a pipe is at ``path``.
    """
    _must_give_way(path)
    try:
        yield unfinished
        if previous is not None and path.exists():
            os.replace(path, previous)
        os.replace(unfinished, path)
    except BaseException:
        with suppress(OSError):
            unfinished.unlink()
        raise


@contextmanager
def new_folder(target: Path, replaceable: Collection[str] = ()) -> Iterator[Path]:
    """A folder to write files into, which becomes ``target`` at the end, or vanishes if anything goes wrong.

    Args:
        replaceable: names of files that an earlier ``target`` may hold; it is replaced as a whole.

    Raises:
        UserError: where ``target`` is a file or holds other files, or cannot be written.
    """
    with disk_errors(target):
        if target.exists() and (not target.is_dir() or {file.name for file in target.iterdir()} - {*replaceable}):
            raise UserError(f"{target}: exists already; name a new folder")
    with staging(target) as folder:
        yield folder
        everything_to_disk(folder)
        if target.exists():
            os.replace(target, folder.with_name(OLD))
        move(folder, target)


@contextmanager
def made(folder: Path) -> Iterator[None]:
    """The folder and those around it, made where they are missing; what is empty of these goes again with an error."""
    missing = [one for one in (folder, *folder.parents) if not one.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        with suppress(OSError):  # one that holds something, and so all around it, stays
            for one in missing:
                one.rmdir()
        raise


@contextmanager
def staging(target: Path) -> Iterator[Path]:
    """An empty folder, hidden beside ``target``, for what is to be moved there; at the end it vanishes with its rest.

    Parents of ``target`` are made, and go again with an error. Raises UserError for what the disk refuses, in the block
    too, and where ``target`` is a device or a pipe.
    """
    with disk_errors(target), made(target.parent):
        _must_give_way(target)
        _remove_abandoned(target.parent)
        folder, lock = _claimed(target)
        with lock:
            try:
                new = folder / "new"
                new.mkdir()
                yield new
            finally:
                _remove(folder, target, lock)


def _must_give_way(path: Path) -> None:
    """Raises OSError where what is there is used by other programs, which would wait for ever once it is replaced."""
    if (kind := passage(path)) is not None:
        raise OSError(errno.EEXIST, f"{kind} is there, and no file")


def move(staged: Path, target: Path) -> None:
    """Moves what was staged, a file or a folder, to its place once it is on the disk."""
    everything_to_disk(staged)
    os.replace(staged, target)
    to_disk(target.parent)


def everything_to_disk(path: Path) -> None:
    """Waits until a file, or a folder with all that is in it, is on the disk."""
    for part in [*path.rglob("*"), path] if path.is_dir() else [path]:
        to_disk(part)


def to_disk(path: Path) -> None:
    """Waits until a file, or the list of a folder's files, is on the disk."""
    if system.WINDOWS and path.is_dir():  # where a folder cannot be opened, and files alone can be waited for
        return
    descriptor = os.open(path, os.O_RDWR if system.WINDOWS else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _claimed(target: Path) -> tuple[Path, BinaryIO]:
    """A new staging folder, and its file, locked. Only then does the file say what it is: see ``_remove_abandoned``."""
    folder = Path(tempfile.mkdtemp(SUFFIX, f".{target.name}.", target.parent))
    lock = open(folder / LOCK, "xb")  # noqa: SIM115
    if _lock(lock):
        lock.write(OURS)
        lock.flush()
    return folder, lock


def _remove_abandoned(parent: Path) -> None:
    """Removes the staging folders of processes that are gone: those that say they are ours and are not locked.

    All else is left, and so is what cannot be removed.
    """
    for folder in parent.glob(f".*{SUFFIX}"):
        with suppress(OSError):
            descriptor = os.open(folder / LOCK, os.O_RDWR | system.NOFOLLOW | system.NONBLOCK)
            with open(descriptor, "rb") as lock:
                ours = not folder.is_symlink() and lock.read(len(OURS) + 1) == OURS
                if ours and _lock(lock):
                    _remove(folder, folder.with_name(folder.name[1:].rsplit(".", 2)[0]), lock)


def _lock(file: BinaryIO) -> bool:
    """Whether it is now locked: not where another process has it, or the file system has no locks."""
    try:
        system.lock(file.fileno())
    except OSError:
        return False
    return True


def _remove(folder: Path, target: Path, lock: BinaryIO) -> None:
    """A staging folder, the file that it is known by last, so that another process can end what this one began.

    An earlier target is put back where nothing took its place.
    """
    if (folder / OLD).exists() and not target.exists():
        os.replace(folder / OLD, target)
    for entry in list(folder.iterdir()):
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        elif entry.name != LOCK:
            entry.unlink()
    if system.WINDOWS:  # where an open file cannot be removed
        lock.close()
    (folder / LOCK).unlink()
    folder.rmdir()

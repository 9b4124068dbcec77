"""Arrays out of NumPy's archives (``.npz``): numbers or text of expected shapes, never objects, never more of them."""

from __future__ import annotations

import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import EllipsisType
from typing import IO

import numpy as np
from numpy.lib import format as npy

from mlx_peft.core import damage
from mlx_peft.core.errors import UserError

IN_MEMORY = 2**30
"""Larger arrays are unpacked into an unnamed temporary file and mapped, so that they need no memory of their own."""

MAX_BYTES = 2**34
"""An array has at most so many bytes: the largest published has 13.5 GB, and a larger one would fill the disk."""

_BLOCK = 2**22


KINDS = {"whole numbers": {"u1", "i8", "u2", "i4"}, "text or numbers": {"U", "u1", "i8", "i4", "f4"}}
"""Types of arrays, without their order of bytes; ``U`` is text of any length."""

Shape = tuple[int | EllipsisType, ...]
"""-1 is any size, and ``...`` at the end any sides."""


def names_in(path: Path) -> list[str]:
    """The names of an archive's arrays. Raises UserError, naming the file, where it is missing or damaged."""
    with _opened(path) as archive:
        return [name.removesuffix(".npy") for name in archive.namelist()]


def read_npz(
    path: Path, shapes: Mapping[str, Shape], kinds: str = "whole numbers", most: int = MAX_BYTES
) -> dict[str, np.ndarray]:
    """Arrays of an archive, by name: of these shapes, of one of ``KINDS``, of so many bytes at most.

    Each member's header is compared with what is expected before anything is unpacked, so that neither a pickled object
    is loaded nor a bomb unpacked. Raises UserError, naming the file, where it is missing, damaged or something else.
    """
    with _opened(path) as archive:
        names = archive.namelist()
        for name in shapes:
            if f"{name}.npy" not in names:
                raise UserError(f"{path}: no array {name!r}; there is {', '.join(names[:10]) or 'nothing'}")
        return {name: _member(archive, name, shape, kinds, most, path) for name, shape in shapes.items()}


@contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    """An archive; what is wrong with it while the block reads it is a UserError that names the file."""
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    except damage.NPZ as error:
        raise UserError(f"{path}: not a readable npz archive ({error or type(error).__name__})") from error


def _member(archive: zipfile.ZipFile, name: str, expected: Shape, kinds: str, most: int, path: Path) -> np.ndarray:
    with archive.open(f"{name}.npy") as file:
        shape, fortran, dtype = _header(file)
        if not {dtype.str[1:], dtype.kind} & KINDS[kinds] or not _fits(shape, expected) or fortran:
            wanted = ", ".join({-1: "n", ...: "..."}.get(side, str(side)) for side in expected)
            raise UserError(f"{path}: {name} is {dtype} {shape}, not {kinds} ({wanted})")
        count = 1
        for side in shape:
            count *= side
        size = count * dtype.itemsize
        if size > most:
            raise UserError(f"{path}: {name} has {size:,} bytes; at most {most:,} are unpacked")
        if archive.getinfo(f"{name}.npy").file_size < size:
            raise UserError(f"{path}: {name} is shorter than {dtype} {shape} needs")
        array = _empty(count, dtype)
        view = array.view(np.uint8).data
        done = 0
        while done < size:
            block = file.read(min(_BLOCK, size - done))
            if not block:
                raise UserError(f"{path}: {name} ends after {done} of {size} bytes")
            view[done : done + len(block)] = block
            done += len(block)
        if file.read(1):
            raise UserError(f"{path}: {name} is longer than {dtype} {shape}")
        return array.reshape(shape)


def _fits(shape: tuple[int, ...], expected: Shape) -> bool:
    """Whether a shape is one that is expected."""
    if expected[-1:] == (...,):
        shape, expected = shape[: len(expected) - 1], expected[:-1]
    return len(shape) == len(expected) and all(b in (-1, a) for a, b in zip(shape, expected, strict=True))


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[np.generic]]:
    """Of the first version of the format, whose header is at most 64 KiB: that of a later one is as long as it says."""
    version = npy.read_magic(file)
    if version != (1, 0):
        raise ValueError(f"version {version} of the npy format")
    shape, fortran, dtype = npy.read_array_header_1_0(file)
    return shape, fortran, dtype


def _empty(count: int, dtype: np.dtype[np.generic]) -> np.ndarray:
    """Room for an array: in memory, or mapped from a temporary file that is gone when nothing uses it."""
    if count * dtype.itemsize <= IN_MEMORY:
        return np.empty(count, dtype)
    with tempfile.TemporaryFile() as file:
        file.truncate(count * dtype.itemsize)
        return np.memmap(file, dtype, "r+", shape=(count,))

"""Directories of tags, as TIFF files and EXIF have them: read without loading what they point to.

Source: TIFF 6.0, section 2, and BigTIFF's wider numbers.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
"""The bytes of a value by its type."""

NUMBERS = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q"}
"""The types that are whole numbers of 0 and more, as struct spells them."""

VALUES = 64
"""So many values of an entry are read: none that says how pixels are stored has more."""

ORIENTATION = 274
_XMP_ORIENTATION = re.compile(rb"tiff:Orientation(?:=\"|>)([1-8])")


@dataclass(frozen=True)
class Entry:
    """One tag: how many values it says it has, in so many bytes, the first of them as whole numbers, and where."""

    count: int
    size: int
    values: tuple[int, ...]
    kind: int
    place: int


def directory(data: bytes) -> tuple[dict[int, Entry], str, int]:
    """The entries of the first directory by their tags, the byte order as struct spells it, and where it begins.

    Of a tag that is there twice the last counts, as in Pillow. Raises ValueError where there is no directory.
    """
    order = {b"II": "<", b"MM": ">"}.get(data[:2])
    if order is None:
        raise ValueError("no directory of tags")
    big = 43 in data[2:4]
    offset, count, entry = ("Q", "Q", "HHQ8s") if big else ("I", "H", "HHI4s")
    try:
        (place,) = struct.unpack_from(order + offset, data, 8 if big else 4)
        (number,) = struct.unpack_from(order + count, data, place)
        first, size = place + struct.calcsize(order + count), struct.calcsize(order + entry)
        if number > 0xFFFF or first + number * size > len(data):
            raise ValueError("the directory of tags is truncated")
        starts = range(first, first + number * size, size)
        return {tag: found for start in starts for tag, found in _entry(data, order, entry, start)}, order, place
    except struct.error as error:
        raise ValueError("the directory of tags is truncated") from error


def _entry(data: bytes, order: str, form: str, start: int) -> Iterator[tuple[int, Entry]]:
    tag, kind, count, field = struct.unpack_from(order + form, data, start)
    if kind not in SIZES:
        return
    size = count * SIZES[kind]
    place = start + struct.calcsize(order + form) - len(field)
    if size > len(field):
        place = int.from_bytes(field, "little" if order == "<" else "big")
    known = f"{order}{min(count, VALUES)}{NUMBERS.get(kind, 'x')}"
    values = struct.unpack_from(known, data, place) if place + struct.calcsize(known) <= len(data) else ()
    yield tag, Entry(count, size, values, kind, place)


def orientation(exif: bytes, xmp: bytes = b"") -> int:
    """1 to 8, as EXIF has it, or else XMP; 1 where neither says anything that can be understood."""
    try:
        entry = directory(exif)[0].get(ORIENTATION)
    except ValueError:
        entry = None
    if entry is not None:
        return entry.values[0] if len(entry.values) == 1 and 1 <= entry.values[0] <= 8 else 1
    found = _XMP_ORIENTATION.search(xmp)
    return int(found[1]) if found else 1


def upright(image: np.ndarray, turned: int) -> np.ndarray:
    """An image ``(height, width, ...)`` that was stored in one of EXIF's eight orientations, C-contiguous."""
    if turned in (5, 6, 7, 8):
        image = image.swapaxes(0, 1)
    down, across = {2: (1, -1), 3: (-1, -1), 4: (-1, 1), 6: (1, -1), 7: (-1, -1), 8: (-1, 1)}.get(turned, (1, 1))
    return np.ascontiguousarray(image[::down, ::across])

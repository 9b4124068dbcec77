"""JPEG files: what their markers say, and their pixels, decoded by libjpeg-turbo and refused where it finds damage.

One decoder for all of them, so that whether a file is read depends on the file alone. Pillow's would not do: it stands
on the same library and gives the same pixels, but passes over that library's warnings, so that a truncated file which
somebody ended properly is grey from some row on; and it takes more than twice the time.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import numpy as np
import simplejpeg
from PIL import Image

from mlx_peft.data import tags
from mlx_peft.data.limits import limits
from mlx_peft.data.memory import budget

START, END = b"\xff\xd8", b"\xff\xd9"
MODES = {1: "L", 3: "RGB", 4: "CMYK"}
"""Pillow's names of modes, by the number of components."""

SEGMENTS = 10_000
"""At most so many marker segments are looked at, of at most 64 KiB each: a file of nothing but segments would take
minutes."""

HARMLESS = "extraneous bytes before marker"
"""libjpeg warns of this though the picture is whole."""

SUBSAMPLED = "Could not determine subsampling"
"""libjpeg-turbo says this of factors that it has no name for: CMYK with fewer samples of magenta, say."""

_MARKER = re.compile(rb"\xff[^\0\x01\xff\xd0-\xd8]")
"""Markers that have a length, or end the file. In a scan 0xFF is followed by 0 or is a restart marker."""

_EXIF, _XMP = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0"
_ALL = b"\0\x3f\0"
"""Coefficients, from the first to the last and to the last bit: all that a sequential scan can have."""
_JFIF, _ADOBE, _TRANSFORM = b"JFIF\0", b"Adobe", 11
_END, _SCAN, _APP0, _APP1, _APP14 = 0xD9, 0xDA, 0xE0, 0xE1, 0xEE
_TABLES = frozenset({0xC4, 0xDB})
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_SEQUENTIAL, _PROGRESSIVE = frozenset({0xC0, 0xC1, 0xC9}), frozenset({0xC2, 0xCA})


@dataclass
class Header:
    """What the markers of a file say."""

    width: int = 0
    height: int = 0
    frame: int = 0
    """Its marker: what kind it is of."""
    components: bytes = b""
    """Their identifiers."""
    scans: int = 0
    ended: bool = False
    """Whether there is an end marker."""
    exif: bytes = b""
    xmp: bytes = b""
    missing_bits: dict[int, list[int]] = field(default_factory=dict)
    """By component, of each of its 64 coefficients: how many of the lowest bits no scan has brought; 16 for all."""
    odd: dict[int, bytes] = field(default_factory=dict)
    """What some encoders write into headers, by its place, put as libjpeg understands it. It would warn of it, and
    only of the first thing that it finds."""

    @property
    def progressive(self) -> bool:
        return self.frame in _PROGRESSIVE

    @property
    def mode(self) -> str:
        """In Pillow's words."""
        return MODES.get(len(self.components), f"of {len(self.components)} components")

    @property
    def samples(self) -> int:
        return self.width * self.height * len(self.components)


def header(data: bytes) -> Header:
    """What the markers of a JPEG file say. Raises ValueError where they describe no picture, or more than is read."""
    found, position, transform = Header(), len(START), 0
    for _ in range(SEGMENTS):
        marker = _MARKER.search(data, position)
        if marker is None or marker[0][1] == _END:
            found.ended = marker is not None
            break
        start, kind = marker.end(), data[marker.end() - 1]
        position = start + max(2, int.from_bytes(data[start : start + 2], "big"))
        if kind in _TABLES:
            continue
        body = data[start + 2 : position]
        if kind in _FRAMES:
            _frame(found, body, kind)
        elif kind == _SCAN:
            _scan(found, body, position)
        elif kind == _APP0 and body.startswith(_JFIF) and body[5:6] != b"\1":
            found.odd[start + 7] = b"\1"
        elif kind == _APP14 and body.startswith(_ADOBE) and len(body) > _TRANSFORM:
            transform = start + 2 + _TRANSFORM
        elif kind == _APP1 and body.startswith(_EXIF):
            found.exif = found.exif or body[len(_EXIF) :]
        elif kind == _APP1 and body.startswith(_XMP):
            found.xmp = found.xmp or body
    else:
        raise ValueError(f"more than {SEGMENTS:,} segments")
    if not found.scans:
        raise ValueError("truncated: no picture" if found.components else "no header of a picture")
    known = {3: b"\1\0", 4: b"\2\0"}.get(len(found.components), b"")
    if transform and known and data[transform : transform + 1] not in known:
        found.odd[transform] = known[:1]
    return found


def _frame(found: Header, body: bytes, kind: int) -> None:
    if found.components or len(body) < 6 or len(body) < 6 + 3 * body[5] or body[5] not in MODES:
        raise ValueError("damaged header")
    if body[0] != 8:
        raise ValueError(f"{body[0]} bits a sample: convert the file to 8 bits")
    found.height, found.width = int.from_bytes(body[1:3], "big"), int.from_bytes(body[3:5], "big")
    found.components = body[6 : 6 + 3 * body[5] : 3]
    found.frame = kind
    found.missing_bits = {component: [16] * 64 for component in found.components}
    limits().check(found.width, found.height, found.samples)


def _scan(found: Header, body: bytes, end: int) -> None:
    count = body[0] if body else 0
    if not found.components or len(body) < 4 + 2 * count:
        raise ValueError("damaged header")
    found.scans += 1
    limits().check(found.width, found.height, found.samples, found.scans)
    first, last, low = 0, 63, 0
    if found.progressive:
        first, last, low = body[-3], min(body[-2], 63), body[-1] & 15
    elif found.frame in _SEQUENTIAL and body[-3:] != _ALL:
        found.odd[end - len(_ALL)] = _ALL
    for component in body[1 : 1 + 2 * count : 2]:
        if component in found.missing_bits and first <= last:
            found.missing_bits[component][first : last + 1] = [low] * (last + 1 - first)


def decode(data: bytes) -> np.ndarray:
    """A JPEG file as uint8 ``(height, width, 3)``, upright.

    Whole is a file whose scans bring every coefficient to its last bit, with all the data that they need, whether the
    end marker is there or not. Raises ValueError where it is not whole, or more than is read.
    """
    found = header(data)
    if any(any(bits) for bits in found.missing_bits.values()):
        raise ValueError("truncated: not all of its scans are there")
    if not found.ended:  # of this too it would warn first
        data += END
    for place, content in found.odd.items():
        data = data[:place] + content + data[place + len(content) :]
    pixels = found.width * found.height
    # Coefficients of 16 bits wait in memory where one scan does not complete the picture.
    waiting = 2 * found.samples if found.progressive or found.scans > 1 else 0
    ink = found.mode == "CMYK"
    with budget().decoding((19 if ink else 6) * pixels + waiting, 3 * pixels):
        image = _libjpeg(data, "CMYK" if ink else "RGB")
        if image.shape[:2] != (found.height, found.width):
            raise ValueError("damaged header")
        if ink:  # as Adobe stores it, upside down
            image = np.asarray(Image.fromarray(255 - image, "CMYK").convert("RGB"))
        return tags.upright(image, tags.orientation(found.exif, found.xmp))


def _libjpeg(data: bytes, space: str) -> np.ndarray:
    try:
        image: np.ndarray = simplejpeg.decode_jpeg(data, space)
    except ValueError as error:
        if SUBSAMPLED in str(error):
            raise ValueError(
                "its components are subsampled in an unusual way that is not read; save it anew"
            ) from error
        if HARMLESS not in str(error):
            raise
        image = simplejpeg.decode_jpeg(data, space, strict=False)
    return image

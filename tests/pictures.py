"""Image files put together by hand, where Pillow writes no such file or would decide what is right."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping, Sequence

import numpy as np

SHORT, LONG = 3, 4
DEFLATE = 8
Values = Sequence[int] | bytes


def tiff(
    samples: np.ndarray,
    photometric: int | None = 1,
    *,
    order: str = "<",
    bits: int = 0,
    extra: Sequence[int] = (),
    planar: int = 1,
    compression: int = 1,
    form: int = 1,
    rows: int = 0,
    changed: Mapping[int, tuple[int, Values] | None] = {},
) -> bytes:
    """A TIFF file of samples ``(height, width)`` or ``(height, width, samples)``, in strips of so many rows.

    bits: of a sample, by default its dtype's. changed: tags to add or to replace, each with its type and values, or to
    leave out.
    """
    height, width = samples.shape[:2]
    samples = samples.reshape(height, width, -1)
    number, bits, rows = samples.shape[2], bits or 8 * samples.dtype.itemsize, rows or height
    planes = [samples[..., n : n + 1] for n in range(number)] if planar == 2 else [samples]
    strips = [_strip(plane[first : first + rows], bits, order) for plane in planes for first in range(0, height, rows)]
    if compression == DEFLATE:
        strips = [zlib.compress(strip) for strip in strips]
    starts = np.cumsum([8] + [len(strip) for strip in strips]).tolist()
    tags: dict[int, tuple[int, Values]] = {
        256: (LONG, [width]),
        257: (LONG, [height]),
        258: (SHORT, [bits] * number),
        259: (SHORT, [compression]),
        273: (LONG, starts[:-1]),
        277: (SHORT, [number]),
        278: (LONG, [rows]),
        279: (LONG, [len(strip) for strip in strips]),
        284: (SHORT, [planar]),
        339: (SHORT, [form] * number),
    }
    if photometric is not None:
        tags[262] = SHORT, [photometric]
    if photometric == 3:
        tags[320] = SHORT, [257 * level % 65536 for level in range(3 * 2 ** min(bits, 8))]
    if extra:
        tags[338] = SHORT, extra
    content = b"".join(strips) + b"\0" * (starts[-1] % 2)
    place = 8 + len(content)
    header = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", place)
    written = {tag: entry for tag, entry in {**tags, **changed}.items() if entry is not None}
    return header + content + directory(written, order, place)


def directory(tags: Mapping[int, tuple[int, Values]], order: str = "<", place: int = 8) -> bytes:
    """A directory of tags that begins at `place`, and after it the values that are too long for it."""
    entries, after = struct.pack(order + "H", len(tags)), b""
    beyond = place + 2 + 12 * len(tags) + 4
    for tag, (kind, values) in sorted(tags.items()):
        form = {1: "B", 2: "B", SHORT: "H", LONG: "I", 7: "B"}[kind]
        body = struct.pack(f"{order}{len(values)}{form}", *values)
        entries += struct.pack(order + "HHI", tag, kind, len(values))
        if len(body) > 4:
            entries += struct.pack(order + "I", beyond + len(after))
            after += body
        else:
            entries += body.ljust(4, b"\0")
    return entries + b"\0\0\0\0" + after


def _strip(rows: np.ndarray, bits: int, order: str) -> bytes:
    if bits in (8, 16, 32):
        return rows.astype(rows.dtype.newbyteorder("<" if order == "<" else ">")).tobytes()
    places = np.arange(bits - 1, -1, -1)
    return b"".join(
        np.packbits((row.reshape(-1, 1) >> places & 1).astype(np.uint8).reshape(-1)).tobytes() for row in rows
    )


def png(
    width: int, height: int, bits: int, kind: int, rows: bytes, chunks: Sequence[tuple[bytes, bytes]] = ()
) -> bytes:
    """A PNG file; rows: as they are before compression, each with a filter's byte before it; kind: of colour."""
    header = b"IHDR", struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n"
    for name, content in (header, *chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")):
        data += struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
    return data

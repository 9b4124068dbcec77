"""mlx-data's decoder, which is faster than Pillow's. Where it is not installed, Pillow serves.

Its decoder gives Pillow's very pixels for the files accepted here (both stand on libjpeg-turbo), but it is silent about
truncation and deaf to orientation: anything but a complete, upright JPEG of three channels is left to Pillow.
"""

from __future__ import annotations

import os
import re
from functools import cache
from pathlib import Path
from types import ModuleType

import numpy as np
from PIL import ExifTags, Image

_START, _END = b"\xff\xd8", b"\xff\xd9"
_EXIF = b"Exif\0\0"
_ORIENTATION = b"Orientation"
_APP1, _SCAN = 0xE1, 0xDA
_BASELINE, _EXTENDED, _PROGRESSIVE = 0xC0, 0xC1, 0xC2
_MARKER = re.compile(rb"\xff[^\0\xd0-\xd7]")
"""What ends a scan: in its data 0xFF is followed by 0 or is a restart marker."""


@cache
def _mlx_data() -> ModuleType | None:
    try:
        import mlx.data
    except ImportError:
        return None
    return mlx.data  # type: ignore[no-any-return]


def decode(path: Path, data: bytes, max_pixels: int) -> np.ndarray | None:
    """A JPEG file, whose bytes are `data`, as uint8 ``(height, width, 3)``; None where Pillow must look at it.

    mlx-data is given the path, since decoding from memory never returns from some damaged files (mlx-data 0.2.0).
    """
    dx = _mlx_data()
    if dx is None or (size := plain_jpeg(data)) is None or size[0] * size[1] > max_pixels:
        return None
    try:
        loaded = dx.buffer_from_vector([{"image": os.fsencode(path)}]).load_image("image")
        image: np.ndarray = loaded[0]["image"]
    except RuntimeError:  # libjpeg gave up: Pillow will say why
        return None
    return image if image.shape == (*size, 3) else None


def plain_jpeg(data: bytes) -> tuple[int, int] | None:
    """Height and width of a JPEG of three 8-bit channels, upright and whole from start to end; else None."""
    if not data.startswith(_START):
        return None
    position, size = len(_START), None
    while data[position : position + 1] == b"\xff" and position + 4 <= len(data):
        marker, length = data[position + 1], int.from_bytes(data[position + 2 : position + 4], "big")
        body = data[position + 4 : position + 2 + length]
        if marker == _APP1 and not _upright(body):
            return None
        if marker in (_BASELINE, _EXTENDED, _PROGRESSIVE):
            if size or len(body) < 6 or body[0] != 8 or body[5] != 3:
                return None
            size = int.from_bytes(body[1:3], "big"), int.from_bytes(body[3:5], "big")
        position += 2 + length
        if marker == _SCAN:
            end = _MARKER.search(data, position)
            position = end.start() if end else len(data)
    return size if data[position:] == _END else None


def _upright(metadata: bytes) -> bool:
    """Whether EXIF or XMP leaves the image as it is stored; False in doubt."""
    if not metadata.startswith(_EXIF):
        return _ORIENTATION not in metadata
    exif = Image.Exif()
    try:
        exif.load(metadata)
        return exif.get(ExifTags.Base.Orientation) in (None, 1)
    except Exception:  # damaged EXIF raises almost anything
        return False

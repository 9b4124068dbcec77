"""Image files and bytes to uint8 RGB: every common format, and a refusal by name of what is broken or too large."""

from __future__ import annotations

import stat
from pathlib import Path

import numpy as np
from PIL import UnidentifiedImageError

from mlx_peft.core.errors import UserError
from mlx_peft.data import jpeg, pillow
from mlx_peft.data.limits import limits

RULES = 2
"""The number is raised by one where a file would become other pixels, or another verdict, than before: what was kept of
images that were read by other rules does not count (see data.cache and data.checked)."""

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif")


def read_image(path: Path | str) -> np.ndarray:
    """An image file as uint8 ``(height, width, 3)`` RGB, turned upright.

    JPEG, PNG, WebP, TIFF, BMP and GIF (the first frame), whatever the suffix; grey, palette, CMYK and 16-bit images are
    converted (of 16 bits, the upper 8), transparency is laid over white, EXIF orientation is applied. The array may be
    read-only. Raises UserError, naming the file, where it is missing, unreadable, damaged or beyond ``data.limits``.
    """
    path = Path(path)
    return decode_image(file_bytes(path), str(path))


def decode_image(data: bytes, name: str) -> np.ndarray:
    """The bytes of an image file, as ``read_image`` reads them. Raises UserError, naming it, where it does not."""
    if len(data) > limits().file:
        raise _too_large(name)
    try:
        return jpeg.decode(data) if data.startswith(jpeg.START) else pillow.decode(data)
    except Exception as error:  # Pillow's parsers raise almost anything on damaged bytes
        reason = "not an image in a known format" if isinstance(error, UnidentifiedImageError) else error
        raise UserError(f"{name}: not a readable image ({reason or type(error).__name__})") from error


def file_bytes(path: Path) -> bytes:
    """The content of a file. Raises UserError where it is none, cannot be read or is larger than an image may be."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # a pipe would be waited for without end
            raise UserError(f"{path}: {'a folder, ' * stat.S_ISDIR(status.st_mode)}not a file")
        if status.st_size > limits().file:
            raise _too_large(str(path))
        return path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise UserError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from error


def stored_as(data: bytes) -> str:
    """What an image file is, by its header: ``JPEG RGB``, ``PNG I;16``. Raises ValueError where it is none."""
    try:
        return f"JPEG {jpeg.header(data).mode}" if data.startswith(jpeg.START) else pillow.stored_as(data)
    except Exception as error:
        raise ValueError("not an image in a known format") from error


def stored_bits(data: bytes) -> tuple[int, bool]:
    """Bits of a sample as the file stores it, and whether 0 is white in it. Raises ValueError where it is no image."""
    if data.startswith(jpeg.START):
        return 8, False
    try:
        return pillow.stored_bits(data)
    except Exception as error:
        raise ValueError("not an image in a known format") from error


def _too_large(name: str) -> UserError:
    return UserError(f"{name}: larger than {limits().file / 2**20:,.0f} MiB, the most that is read as an image")

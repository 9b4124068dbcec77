"""Image files and bytes to uint8 RGB: every common format, and a refusal by name of what is broken."""

from __future__ import annotations

import io
import stat
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from mlx_peft.core.errors import UserError
from mlx_peft.data import jpeg

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif")
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF")

MAX_PIXELS = 89_478_485
"""More pixels than this (256 MiB of RGB) are taken for a decompression bomb: Pillow's own limit for a warning."""

MAX_RATIO = 100
"""Of the longer side to the shorter: so much every evaluation recipe can resize whose shorter side is 50 to 945 pixels.
What is longer is refused here, so that it counts as unreadable before a run comes to it (see data.recipe.eval_image).
"""

MAX_BYTES = 2**30
"""Larger files are not read: no image within MAX_PIXELS needs so many bytes."""

warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # here it is an error, raised by _pillow


def read_image(path: Path | str) -> np.ndarray:
    """An image file as uint8 ``(height, width, 3)`` RGB, turned upright.

    JPEG, PNG, WebP, TIFF, BMP and GIF (the first frame), whatever the suffix; grey, palette, CMYK and 16-bit images are
    converted (of 16 bits, the upper 8), transparency is laid over white, EXIF orientation is applied. The array may be
    read-only. Raises UserError, naming the file, where it is missing, unreadable, truncated, larger than MAX_PIXELS or
    narrower than MAX_RATIO.
    """
    path = Path(path)
    data = file_bytes(path)
    return _read(lambda: jpeg.decode(path, data, MAX_PIXELS), data, str(path))


def decode_image(data: bytes, name: str) -> np.ndarray:
    """The bytes of an image file, as ``read_image`` reads them. Raises UserError, naming it, where it does not."""
    if len(data) > MAX_BYTES:
        raise UserError(f"{name}: larger than {MAX_BYTES // 2**20} MiB, the most that is read as an image")
    return _read(lambda: None, data, name)


def file_bytes(path: Path) -> bytes:
    """The content of a file. Raises UserError where it is none, cannot be read or is larger than MAX_BYTES."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # a pipe would be waited for without end
            raise UserError(f"{path}: not a file")
        if status.st_size > MAX_BYTES:
            raise UserError(f"{path}: larger than {MAX_BYTES // 2**20} MiB, the most that is read as an image")
        return path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise UserError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from error


def stored_as(data: bytes) -> str:
    """What an image file is, by its header: ``JPEG RGB``, ``PNG I;16``. Raises ValueError where it is none."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            return f"{image.format} {image.mode}"
    except Exception as error:
        raise ValueError("not an image in a known format") from error


def _read(quickly: Callable[[], np.ndarray | None], data: bytes, name: str) -> np.ndarray:
    try:
        image = quickly()
        image = _pillow(data) if image is None else image
        height, width = image.shape[:2]
        if max(height, width) > MAX_RATIO * min(height, width):
            raise ValueError(f"{width} x {height}: one side is more than {MAX_RATIO} times the other; crop it")
        return image
    except Exception as error:  # Pillow's parsers raise almost anything on damaged bytes
        reason = "not an image in a known format" if isinstance(error, UnidentifiedImageError) else error
        raise UserError(f"{name}: not a readable image ({reason or type(error).__name__})") from error


def _pillow(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(f"{image.width} x {image.height} is more than {MAX_PIXELS:,} pixels")
        form = image.format
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
        return np.asarray(_rgb(image, form))


def _rgb(image: Image.Image, form: str | None) -> Image.Image:
    if image.mode.startswith("I;16") or (image.mode == "I" and form == "PNG"):  # the latter in older Pillows
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError(f"pixels of mode {image.mode} have no agreed range: convert the file to 8 or 16 bits")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")

"""PNG, WebP, TIFF, BMP and GIF files to uint8 RGB by Pillow, each held against the limits before it is decoded."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from PIL import Image, UnidentifiedImageError

from mlx_peft.data import tags, tiff
from mlx_peft.data.limits import PREFIX, Limits, limits
from mlx_peft.data.memory import budget

FORMATS = ("PNG", "WEBP", "BMP", "GIF")
"""Pillow reads these, and TIFF, which is checked first."""

PEAK = {"PNG": 20, "WEBP": 28, "TIFF": 20, "BMP": 20, "GIF": 20}
"""A pixel takes so many bytes of memory while it is decoded and laid over white, the file's own decoder included;
measured."""

_IHDR = b"IHDR"
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
"""The channels of a PNG by its colour type."""

warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limits see to that


def decode(data: bytes) -> np.ndarray:
    """An image file as uint8 ``(height, width, 3)``, upright. Raises whatever Pillow does, and ValueError."""
    with _opened(data) as (image, layout):
        form, pixels = image.format or "", image.width * image.height
        if form != "WEBP":
            with budget().decoding(PEAK[form] * pixels, 3 * pixels):
                return _upright(image, layout)
    # Of a WebP file two whole images are made on opening, of whatever size: it is opened anew when its turn has come.
    with budget().decoding(PEAK[form] * pixels, 3 * pixels), _opened(data) as (image, layout):
        return _upright(image, layout)


def pixels(image: Image.Image) -> np.ndarray:
    """An image that Pillow holds, as its file would be read. Raises ValueError where pixels have no agreed range."""
    bits = 16 if image.mode.startswith("I;16") else 8
    return _upright(image, tiff.Layout(bits=bits, samples=len(image.getbands())))


def _upright(image: Image.Image, layout: tiff.Layout) -> np.ndarray:
    image.load()
    turned = 1 if image.format == "TIFF" else _orientation(image)  # Pillow turns a TIFF itself
    return tags.upright(_rgb(image, layout), turned)


def stored_as(data: bytes) -> str:
    """``PNG I;16``: a file's format and Pillow's mode, by its header. Raises whatever Pillow does, and ValueError."""
    with _opened(data) as (image, _):
        return f"{image.format} {image.mode}"


def stored_bits(data: bytes) -> tuple[int, bool]:
    """Bits of a sample, and whether 0 is white, by a file's header. Raises whatever Pillow does, and ValueError."""
    with _opened(data) as (_, layout):
        return layout.bits, layout.inverted


@contextmanager
def _opened(data: bytes) -> Iterator[tuple[Image.Image, tiff.Layout]]:
    """A file whose header is within the limits, not yet decoded, and how its samples are stored."""
    most = limits().pixels
    if most > Limits.pixels and Image.MAX_IMAGE_PIXELS is not None:  # somebody asked for more: of Pillow, too
        Image.MAX_IMAGE_PIXELS = max(most, Image.MAX_IMAGE_PIXELS)
    if data.startswith(tiff.STARTS):
        data, layout = tiff.checked(data)
        try:
            image = Image.open(io.BytesIO(data), formats=("TIFF",))
        except UnidentifiedImageError as error:
            raise ValueError(f"{layout}: damaged, or not read; convert the file to RGB of 8 bits") from error
        with image:
            yield image, layout
        return
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise ValueError(f"more than {most:,} pixels; {PREFIX}PIXELS changes this limit") from error
    with image:
        layout = tiff.Layout(bits=8, samples=4 if image.format == "WEBP" else len(image.getbands()))
        if image.format == "PNG":
            if data[12:16] != _IHDR:
                raise ValueError("damaged header")
            layout = tiff.Layout(bits=data[24], samples=_CHANNELS.get(data[25], 4))
        limits().check(image.width, image.height, image.width * image.height * layout.bits * layout.samples // 8)
        yield image, layout


def _orientation(image: Image.Image) -> int:
    """By EXIF, which ImageMagick writes into a PNG's text, or XMP."""
    exif, xmp = image.info.get("exif"), image.info.get("xmp") or image.info.get("XML:com.adobe.xmp") or b""
    if exif is None and (text := image.info.get("Raw profile type exif")):
        try:
            exif = bytes.fromhex("".join(text.split("\n")[3:]))
        except ValueError:
            exif = b""
    return tags.orientation((exif or b"").removeprefix(b"Exif\0\0"), xmp.encode() if isinstance(xmp, str) else xmp)


def _rgb(image: Image.Image, layout: tiff.Layout) -> np.ndarray:
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):  # the latter in older Pillows
        return _of_16_bits(np.asarray(image), image.info.get("transparency"), layout)
    if image.mode in ("I", "F"):
        raise ValueError(f"pixels of mode {image.mode} have no agreed range: convert the file to 8 or 16 bits")
    if image.format == "PNG" and "transparency" in image.info:
        image.info["transparency"] = _eight_bits(image.info["transparency"], image.mode, layout.bits)
    if layout.alpha and image.has_transparency_data:
        if layout.multiplied:
            image = Image.frombytes("La", image.size, image.tobytes())
        image = image.convert("LA") if image.mode == "La" else image  # which has no way to RGBA of its own
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    levels = np.asarray(image.convert("RGB"))
    return 255 - levels if layout.inverted else levels


def _of_16_bits(samples: np.ndarray, transparent: int | None, layout: tiff.Layout) -> np.ndarray:
    """Grey samples of more than 8 bits: the upper 8 of them."""
    levels = (samples >> layout.bits - 8).astype(np.uint8)
    if layout.inverted:
        levels = 255 - levels
    if transparent is not None:
        levels[samples == transparent] = 255
    return np.repeat(levels[..., None], 3, axis=2)


def _eight_bits(transparent: object, mode: str, bits: int) -> object:
    """A PNG's transparent grey or colour, which is in the file's own bits, as Pillow's pixels are, in 8."""
    if mode == "L" and isinstance(transparent, int) and bits < 8:
        return transparent * 255 // (2**bits - 1)
    if mode == "RGB" and isinstance(transparent, tuple) and bits == 16:
        return tuple(value >> 8 for value in transparent)
    return transparent

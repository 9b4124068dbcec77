"""The evaluation recipe of the weights, pixel for pixel timm's: resize, then crop the centre."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from mlx_peft.core.errors import UserError
from mlx_peft.data.limits import limits
from mlx_peft.data.reading import read_image
from mlx_peft.vit.architecture import Preprocessing

FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def eval_image(source: Path | str | np.ndarray, preprocessing: Preprocessing, image_size: int) -> np.ndarray:
    """A file, or a uint8 ``(height, width, 3)`` array, as the model sees it: uint8 ``(image_size, image_size, 3)``.

    `crop_mode` center: the shorter side to ``floor(image_size / crop_pct)``, then the centre; squash: both sides, then
    the centre; border: the longer side, then the centre on a ground of the mean colour. Raises UserError, naming a
    file, where it cannot be read, or is so narrow that the whole of it resized has no pixels or more than are read.
    """
    pixels = source if isinstance(source, np.ndarray) else read_image(source)
    image = Image.fromarray(np.ascontiguousarray(pixels))
    scaled = math.floor(image_size / preprocessing.crop_pct)
    width, height = _resized(image.width, image.height, scaled, preprocessing.crop_mode)
    if not 0 < width * height <= limits().pixels:
        named = "" if isinstance(source, np.ndarray) else f"{source}: "
        raise UserError(
            f"{named}{image.width} x {image.height} pixels would become {width} x {height}, and should become 1 to "
            f"{limits().pixels:,} in all: too narrow; crop it"
        )
    image = image.resize((width, height), FILTERS[preprocessing.interpolation])
    ground = tuple(round(255 * value) for value in preprocessing.mean) if preprocessing.crop_mode == "border" else 0
    return np.asarray(_center(image, image_size, ground))


def _resized(width: int, height: int, scaled: int, mode: str) -> tuple[int, int]:
    if mode == "squash":
        return scaled, scaled
    if mode == "border":
        ratio = max(width, height) / scaled
        return round(width / ratio), round(height / ratio)
    if width <= height:
        return scaled, int(scaled * height / width)
    return int(scaled * width / height), scaled


def _center(image: Image.Image, size: int, ground: int | tuple[int, ...]) -> Image.Image:
    across, down = max(0, size - image.width), max(0, size - image.height)
    if across or down:
        image = ImageOps.expand(image, (across // 2, down // 2, (across + 1) // 2, (down + 1) // 2), ground)
    left, top = round((image.width - size) / 2), round((image.height - size) / 2)
    return image.crop((left, top, left + size, top + size))

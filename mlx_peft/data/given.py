"""Images as a person has them at hand, in files, in Pillow, in arrays, to pixels of a model's size."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from PIL import Image

from mlx_peft.core.batches import slices
from mlx_peft.core.errors import UserError, shown
from mlx_peft.core.paths import given_path
from mlx_peft.data import pillow
from mlx_peft.data.dataset import Images
from mlx_peft.data.litter import files_below
from mlx_peft.data.reading import SUFFIXES
from mlx_peft.data.recipe import eval_image
from mlx_peft.vit.architecture import Preprocessing

Layout = Literal["NHWC", "NCHW"]
"""Where an array has its channels."""

One = Path | np.ndarray
"""One image: its file, or uint8 ``(height, width, 3)``."""


def taken(images: Any, layout: str = "NHWC") -> tuple[list[One], bool]:
    """The images one by one, and whether there was a single one, not a list, a folder or a batch of one.

    Args:
        images: a file; a folder, of which all image files are meant at any depth; an image of Pillow's; an array of
            whole numbers 0 to 255, ``(height, width, 3)``, or a batch of them, grey ones with one channel, whatever
            library's it is; or a list of any of these.
        layout: NCHW where arrays have their channels first.

    Raises:
        UserError: what was given is none of these, floats above all; a folder has no images.
    """
    if layout not in get_args(Layout):
        raise UserError(f"layout should be NHWC or NCHW, not {shown(layout)}")
    if isinstance(images, list | tuple):
        return [one for entry in images for one in taken(entry, layout)[0]], False
    if isinstance(images, str | os.PathLike):
        path = given_path(images, "an image")
        return ([path], True) if not path.is_dir() else (_in_folder(path), False)
    if isinstance(images, Image.Image):
        try:
            return [pillow.pixels(images)], True
        except ValueError as error:
            raise UserError(f"an image of Pillow's cannot be used: {error}") from error
    try:
        array = np.asarray(images)
    except Exception as error:  # a tensor on a device, or anything at all
        raise UserError(f"{type(images).__name__} is no image: {error}") from error
    return _rows(array, layout)


def files(paths: Sequence[str | os.PathLike[str]]) -> list[Path]:
    """Files as they are named, and of a folder all image files at any depth, sorted.

    Raises UserError where a folder has no images.
    """
    return [one for one in taken(list(paths))[0] if isinstance(one, Path)]


def seen(image: One, preprocessing: Preprocessing, size: int) -> np.ndarray:
    """An image as the model sees it, uint8 ``(size, size, 3)``: by the recipe of its weights, see ``eval_image``.

    An array that has the size is as it should be already. Raises UserError where a file cannot be read.
    """
    if isinstance(image, np.ndarray) and image.shape[:2] == (size, size):
        return image
    return eval_image(image, preprocessing, size)


@dataclass(frozen=True, eq=False)
class Seen:
    """Images as a model sees them when it predicts: those of an array by the recipe of its weights too."""

    images: Images
    preprocessing: Preprocessing
    size: int

    @property
    def identifiers(self) -> Sequence[str]:
        return self.images.identifiers

    @property
    def stored_size(self) -> tuple[int, int]:
        return self.size, self.size

    def __len__(self) -> int:
        return len(self.images)

    def take(self, rows: np.ndarray) -> Seen:
        return replace(self, images=self.images.take(rows))

    def read(self, index: int) -> np.ndarray:
        return seen(self.images.read(index), self.preprocessing, self.size)

    def portable(self) -> Seen:
        return replace(self, images=self.images.portable())


def stacked(images: Sequence[One], preprocessing: Preprocessing, size: int) -> np.ndarray:
    """Some images as the model sees them, uint8 ``(images, size, size, 3)``: see ``seen``."""
    return np.stack([seen(image, preprocessing, size) for image in images])


def batches(images: Sequence[One], size: int) -> Iterator[Sequence[One]]:
    """So many at a time. Raises UserError where that is no number of images."""
    return (images[part] for part in slices(len(images), size))


def _in_folder(folder: Path) -> list[One]:
    files = files_below(folder, SUFFIXES)
    if not files:
        raise UserError(f"{folder}: a folder without images")
    return [folder / file for file in files]


def _rows(array: np.ndarray, layout: str) -> tuple[list[One], bool]:
    """The images of an array, and whether it is one alone."""
    _must_be_levels(array)
    if layout == "NCHW" and array.ndim in (3, 4):
        if array.shape[-3] not in (1, 3):
            raise UserError(f"an array of the shape {array.shape} has no one or three channels first: leave layout out")
        array = np.moveaxis(array, -3, -1)
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim not in (3, 4) or array.shape[-1] not in (1, 3) or 0 in array.shape[-3:]:
        raise UserError(f"an array of the shape {array.shape} is no image and no batch of images: {_advice(array)}")
    pixels = np.broadcast_to(array.astype(np.uint8, copy=False), (*array.shape[:-1], 3))
    return ([pixels], True) if array.ndim == 3 else (list(pixels), False)


def _must_be_levels(array: np.ndarray) -> None:
    """Raises UserError where there are not whole numbers of 0 to 255."""
    if array.dtype == np.uint8:
        return
    if array.dtype.kind not in "iuf" or not array.size:
        raise UserError(f"images should be whole numbers 0 to 255 in an array, not {array.size} times {array.dtype}")
    low, high = array.min(), array.max()
    if array.dtype.kind in "iu" and low >= 0 and high <= 255:
        return
    found = f"images should be whole numbers 0 to 255, as decoded; these are {array.dtype} from {low:.3g} to {high:.3g}"
    if array.dtype.kind in "iu":
        raise UserError(found)
    if low >= 0 and high <= 1:
        raise UserError(f"{found}: give (255 * images).round().astype('uint8')")
    if low >= 0 and high <= 255:
        raise UserError(f"{found}: give images.round().astype('uint8')")
    raise UserError(f"{found}, normalised already: give them as they were before; here it is done as the weights want")


def _advice(array: np.ndarray) -> str:
    if array.ndim in (3, 4) and array.shape[-3] in (1, 3):
        return "its channels come first: say layout='NCHW'"
    if array.ndim in (3, 4) and array.shape[-1] == 4:
        return "four channels, the last of them transparency: leave it out, images[..., :3], or give Pillow's image"
    if array.ndim == 3:
        return "of grey images the channel is written too: images[..., None]"
    return "(height, width, 3) is one, (batch, height, width, 3) a batch"

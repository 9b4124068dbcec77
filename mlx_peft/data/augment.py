"""Shuffling and augmentation as pure functions of (seed, epoch, index): the same whatever thread draws them."""

from __future__ import annotations

import math
import struct
from hashlib import blake2b

import numpy as np

from mlx_peft.config.augment import Erasing
from mlx_peft.vit.architecture import Preprocessing

_IMAGE, _SHUFFLE = 0, 1
"""The fourth words of a seed, which keep one purpose's numbers from another's; sampling and mixing have 2 and 3. NumPy
takes [seed, epoch, index] for [seed, epoch, index, 0]."""
ATTEMPTS = 10
"""A random box is tried so often before the centre is taken, as in torchvision and timm."""


class Draws:
    """The random numbers of one image's crop and flip in one epoch, or of a further copy of it: BLAKE2b, counting up.

    Making a generator takes longer than drawing these, and is half of what a padded crop costs.
    """

    __slots__ = ("_block", "_key", "_words")

    def __init__(self, seed: int, epoch: int, index: int, copy: int = 0) -> None:
        self._key = struct.pack("<4Q", seed, epoch, index, copy)
        self._block = 0
        self._words: list[int] = []

    def random(self) -> float:
        """A number, uniform in [0, 1): a multiple of 2^-53."""
        if not self._words:
            digest = blake2b(self._key, salt=struct.pack("<Q", self._block)).digest()
            self._words = list(struct.unpack("<8Q", digest))
            self._block += 1
        return (self._words.pop() >> 11) * 2.0**-53

    def integers(self, low: int, high: int) -> int:
        """A whole number in [low, high), as good as uniform: no side of an image is near 2^53."""
        return low + int(self.random() * (high - low))


def generator(seed: int, epoch: int, index: int, copy: int = 0) -> np.random.Generator:
    """The random numbers of what one image, or a further copy of it, goes through after crop and flip in one epoch.

    They are drawn in a fixed order: RandAugment or the colours, then the box that is erased.
    """
    return np.random.default_rng([seed, epoch, index, *([_IMAGE, copy] if copy else [])])


def shuffle(size: int, seed: int, epoch: int) -> np.ndarray:
    """The order of an epoch: a permutation of ``range(size)``, int64."""
    return np.random.default_rng([seed, epoch, 0, _SHUFFLE]).permutation(size)


def random_resized_box(
    draws: Draws, size: tuple[int, int], scale: tuple[float, float], ratio: tuple[float, float]
) -> tuple[int, int, int, int]:
    """Top, left, height and width of a random box in an image of `size` (height, width): timm's algorithm.

    Its area is uniform in `scale` times the image's, its width / height log-uniform in `ratio`; where ATTEMPTS boxes
    did not fit, the largest central one with an allowed ratio.
    """
    height, width = size
    smallest, narrowest = scale[0], math.log(ratio[0])
    growth, widening = scale[1] - smallest, math.log(ratio[1]) - narrowest
    for _ in range(ATTEMPTS):
        area = (smallest + growth * draws.random()) * height * width
        aspect = math.exp(narrowest + widening * draws.random())
        box_width, box_height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < box_width <= width and 0 < box_height <= height:
            top, left = draws.integers(0, height - box_height + 1), draws.integers(0, width - box_width + 1)
            return top, left, box_height, box_width
    box_width, box_height = width, height
    if width / height < ratio[0]:
        box_height = max(1, round(width / ratio[0]))
    elif width / height > ratio[1]:
        box_width = max(1, round(height * ratio[1]))
    return (height - box_height) // 2, (width - box_width) // 2, box_height, box_width


def padded_crop(draws: Draws, image: np.ndarray, padding: int) -> np.ndarray:
    """A window of the image's own size out of the image padded on each side by reflection."""
    down, right = (draws.integers(0, 2 * padding + 1) - padding for _ in range(2))
    height, width = image.shape[:2]
    rows, columns = _reflect(np.arange(height) + down, height), _reflect(np.arange(width) + right, width)
    window: np.ndarray = image.take(rows, axis=0).take(columns, axis=1)
    return window


def _reflect(indices: np.ndarray, size: int) -> np.ndarray:
    """Indices outside ``range(size)`` mirrored into it, the border itself not repeated."""
    if size == 1:
        return np.zeros_like(indices)
    period = 2 * (size - 1)
    folded: np.ndarray = indices % period
    mirrored: np.ndarray = np.minimum(folded, period - folded)
    return mirrored


def erase(rng: np.random.Generator, image: np.ndarray, config: Erasing, preprocessing: Preprocessing) -> np.ndarray:
    """The image, or with the probability asked for a copy without a box: timm's algorithm.

    The box is filled with the mean colour of the weights' training images, or with noise of their mean and deviation:
    once normalised it is 0, or standard normal.
    """
    if rng.random() >= config.probability:
        return image
    height, width = image.shape[:2]
    for _ in range(ATTEMPTS):
        area = rng.uniform(*config.area) * height * width
        aspect = math.exp(rng.uniform(math.log(config.ratio[0]), math.log(config.ratio[1])))
        box_height, box_width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if box_height < height and box_width < width:
            top, left = rng.integers(0, height - box_height + 1), rng.integers(0, width - box_width + 1)
            values: np.ndarray = np.broadcast_to(preprocessing.mean, (box_height, box_width, 3))
            if config.fill == "noise":
                values = values + rng.standard_normal(values.shape, np.float32) * preprocessing.std
            erased: np.ndarray = image.copy()
            erased[top : top + box_height, left : left + box_width] = np.rint(np.clip(255 * values, 0, 255))
            return erased
    return image

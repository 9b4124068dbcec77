"""What becomes of one image before it is a row of a batch: a pure function, wherever and whenever it is called."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from mlx_peft.config.augment import Augment
from mlx_peft.core.errors import UserError
from mlx_peft.data import augment, colour
from mlx_peft.data.dataset import Images
from mlx_peft.data.recipe import eval_image
from mlx_peft.data.resize import crop_and_resize
from mlx_peft.vit.architecture import Preprocessing


class Rows(Protocol):
    """How a split's images become rows. Another process can have it."""

    @property
    def worth(self) -> int:
        """So many threads can make such rows at once; more would wait for Python's lock: see ``data.hands``."""
        ...

    def size(self, images: Images) -> tuple[int, int]:
        """Height and width of every row."""
        ...

    def row(self, images: Images, place: int, index: int, copy: int) -> np.ndarray:
        """The image in a place of ``images`` as a row, uint8 ``(height, width, 3)``; may be read-only, or a view.

        index: which of its split's images it is; copy: which of its copies in the epoch. Raises UserError, naming the
        image, where it cannot be read.
        """
        ...


@dataclass(frozen=True)
class Augmented:
    """Rows to train on. Arrays stay at their stored size unless they are cropped at random; all else gets the model's.

    image_size: the model's. seed and epoch: whatever is random is drawn by them, the index and the copy.
    """

    augment: Augment
    preprocessing: Preprocessing
    image_size: int
    seed: int
    epoch: int

    @property
    def worth(self) -> int:
        return 14 if self.augment.randaugment or self.augment.color_jitter else 24

    def size(self, images: Images) -> tuple[int, int]:
        return (images.stored_size if self._as_stored(images) else None) or (self.image_size, self.image_size)

    def row(self, images: Images, place: int, index: int, copy: int) -> np.ndarray:
        wanted, as_stored = self.augment, self._as_stored(images)
        image = images.read(place)
        if not wanted.changes_image:
            return image if as_stored else _seen(images, place, image, self.preprocessing, self.image_size)
        draws = augment.Draws(self.seed, self.epoch, index, copy)
        if wanted.crop == "random_resized":
            box = augment.random_resized_box(draws, (image.shape[0], image.shape[1]), wanted.scale, wanted.ratio)
            image = crop_and_resize(image, box, self.image_size, self.preprocessing.interpolation)
        else:
            if wanted.crop == "padded":
                image = augment.padded_crop(draws, image, wanted.padding)
            if not as_stored:
                image = _seen(images, place, image, self.preprocessing, self.image_size)
        if wanted.flip and draws.random() < 0.5:
            image = image[:, ::-1]
        if not (wanted.randaugment or wanted.color_jitter or wanted.erasing):
            return image
        rng = augment.generator(self.seed, self.epoch, index, copy)
        image = colour.changed(rng, image, wanted)
        return augment.erase(rng, image, wanted.erasing, self.preprocessing) if wanted.erasing else image

    def _as_stored(self, images: Images) -> bool:
        return images.stored_size is not None and self.augment.crop != "random_resized"


@dataclass(frozen=True)
class Evaluated:
    """Rows to measure on: arrays at their stored size, files by the evaluation recipe."""

    preprocessing: Preprocessing
    image_size: int

    @property
    def worth(self) -> int:
        return 32

    def size(self, images: Images) -> tuple[int, int]:
        return images.stored_size or (self.image_size, self.image_size)

    def row(self, images: Images, place: int, index: int, copy: int) -> np.ndarray:
        image = images.read(place)
        return image if images.stored_size else _seen(images, place, image, self.preprocessing, self.image_size)


def _seen(images: Images, place: int, image: np.ndarray, preprocessing: Preprocessing, image_size: int) -> np.ndarray:
    """What the recipe makes of an image. Raises UserError, naming it, where the recipe cannot."""
    try:
        return eval_image(image, preprocessing, image_size)
    except UserError as error:
        raise UserError(f"{images.identifiers[place]}: {error}") from error

"""scikit-learn's digits: 1,797 handwritten digits of 8 x 8 pixels, without a network or a file of the user's."""

from __future__ import annotations

import numpy as np

from mlx_peft.config import schema
from mlx_peft.data.dataset import ArrayImages, Dataset, Split
from mlx_peft.data.splits import hold_out

_LEVELS = 16
"""Black in scikit-learn's array, which counts the dark pixels of 4 x 4 blocks."""


def open_digits(config: schema.Data) -> Dataset:
    """Grey levels 0..16 spread over 0..255. The set has no split of its own: all are carved out by `data.split`."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = np.rint(digits.images * (255 / _LEVELS)).astype(np.uint8)
    whole = Split("train", ArrayImages.whole(pixels, "digits"), digits.target.astype(np.int64))
    return hold_out("digits", tuple(map(str, digits.target_names)), whole, config.split)

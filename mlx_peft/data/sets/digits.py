"""scikit-learn's digits: 1,797 handwritten digits of 8 x 8 pixels, without a network or a file of the user's."""

from __future__ import annotations

import numpy as np

from mlx_peft.config import schema
from mlx_peft.data.dataset import ArrayImages, Split
from mlx_peft.data.entry import Entry, Found, Variant
from mlx_peft.data.looking import Watch

_LEVELS = 16
"""This is black in scikit-learn's array, which counts the dark pixels of 4 x 4 blocks."""


def read_digits(config: schema.Data, variant: Variant, watch: Watch) -> Found:
    """Grey levels 0..16 spread over 0..255. The set has no split of its own: all are carved out by `data.split`."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = np.rint(digits.images * (255 / _LEVELS)).astype(np.uint8)
    whole = Split("train", ArrayImages.whole(pixels, "digits"), digits.target.astype(np.int64))
    return Found(tuple(map(str, digits.target_names)), {"train": whole})


ENTRIES = {
    "digits": Entry(
        read=read_digits,
        description="1,797 handwritten digits of 8 px, part of scikit-learn: nothing to download",
        source="https://archive.ics.uci.edu/dataset/80",
        licence="CC BY 4.0",
        classes=10,
        names=tuple("0123456789"),
        variants=(Variant("whole", "no split of its own: data.split makes them", {"train": 1_797}),),
    )
}

"""scikit-learn's digits: 1,797 handwritten digits of 8 x 8 pixels, without a network or a file of the user's."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np

from mlx_peft.config import schema
from mlx_peft.data.dataset import ArrayImages, Split
from mlx_peft.data.entry import Entry, Found, Variant
from mlx_peft.data.looking import Watch

NAMES = tuple("0123456789")

_LEVELS = 16
"""This is black in scikit-learn's array, which counts the dark pixels of 4 x 4 blocks."""


def _stored() -> np.ndarray:
    """Its rows, ``(1797, 65)``: the pixels of an image, then its digit.

    The file is read as it lies in scikit-learn's package: to import what reads it there takes longer than all else that
    stands before the first step of a small run.
    """
    package = find_spec("sklearn")
    assert package is not None and package.origin is not None
    return np.loadtxt(Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz", delimiter=",")


def read_digits(config: schema.Data, variant: Variant, watch: Watch) -> Found:
    """Grey levels 0..16 spread over 0..255. The set has no split of its own: all are carved out by `data.split`."""
    rows = _stored()
    pixels = np.rint(rows[:, :-1].reshape(-1, 8, 8) * (255 / _LEVELS)).astype(np.uint8)
    whole = Split("train", ArrayImages.whole(pixels, "digits"), rows[:, -1].astype(np.int64))
    return Found(NAMES, {"train": whole})


ENTRIES = {
    "digits": Entry(
        read=read_digits,
        description="1,797 handwritten digits of 8 px, part of scikit-learn: nothing to download",
        source="https://archive.ics.uci.edu/dataset/80",
        licence="CC BY 4.0",
        classes=10,
        names=NAMES,
        variants=(Variant("whole", "no split of its own: data.split makes them", {"train": 1_797}),),
    )
}

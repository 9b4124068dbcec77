"""Street View House Numbers (Netzer et al. 2011), cropped digits of 32 x 32 pixels, in MATLAB files."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mlx_peft.config import schema
from mlx_peft.core.errors import UserError
from mlx_peft.data.dataset import ArrayImages, Split
from mlx_peft.data.entry import Entry, Found, Variant
from mlx_peft.data.lists import locate
from mlx_peft.data.looking import Watch
from mlx_peft.data.matlab import read_arrays
from mlx_peft.data.sets.folder import existing

SOURCE = "http://ufldl.stanford.edu/housenumbers/"
PLACES = (".", "svhn", "SVHN")
SIDE = 32
ZERO = 10
"""The label that the files give to the digit 0."""


def read_svhn(config: schema.Data, variant: Variant, watch: Watch) -> Found:
    """``{train,test}_32x32.mat``: ``X`` uint8 ``(32, 32, 3, n)``, ``y`` ``(n, 1)``, in which 10 stands for the digit 0.

    The 531,131 easier images of ``extra_32x32.mat`` are not read. Raises UserError where a file is missing, damaged or
    of another shape.
    """
    root = locate(existing(config.root), PLACES, "train_32x32.mat", config.name, SOURCE)
    return Found(tuple("0123456789"), {name: _split(name, root / f"{name}_32x32.mat") for name in ("train", "test")})


def _split(name: str, path: Path) -> Split:
    arrays = read_arrays(path, ("X", "y"))
    pixels, labels = arrays["X"], arrays["y"]
    if pixels.dtype != np.uint8 or pixels.shape[:3] != (SIDE, SIDE, 3) or labels.shape != (pixels.shape[-1], 1):
        raise UserError(
            f"{path}: X should be uint8 (32, 32, 3, n) and y (n, 1); they are {pixels.dtype} {pixels.shape} and "
            f"{labels.shape}"
        )
    numbers = labels[:, 0].astype(np.int64)
    if numbers.size and not 1 <= numbers.min() <= numbers.max() <= ZERO:
        raise UserError(f"{path}: labels should be 1 to {ZERO}, and are {numbers.min()} to {numbers.max()}")
    return Split(name, ArrayImages.whole(np.ascontiguousarray(pixels.transpose(3, 0, 1, 2)), name), numbers % ZERO)


ENTRIES = {
    "svhn": Entry(
        read=read_svhn,
        description="99,289 digits of house numbers of 32 px, 26,032 of them for the test",
        source=SOURCE,
        licence="non-commercial use only",
        classes=10,
        variants=(Variant("official", "as published, without extra", {"train": 73_257, "test": 26_032}),),
    )
}

"""Oxford Flowers 102 (Nilsback and Zisserman 2008), its labels in MATLAB files."""

from __future__ import annotations

import numpy as np

from mlx_peft.config import schema
from mlx_peft.core.errors import UserError
from mlx_peft.data.entry import Entry, Found, Variant
from mlx_peft.data.lists import listed_split, locate
from mlx_peft.data.looking import Watch
from mlx_peft.data.matlab import read_arrays
from mlx_peft.data.sets.folder import existing

SOURCE = "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/"
PLACES = (".", "flowers-102", "oxford-flowers102")
KEYS = {"train": "trnid", "val": "valid", "test": "tstid"}
CLASSES = 102


def read_flowers(config: schema.Data, variant: Variant, watch: Watch) -> Found:
    """``jpg/image_00001.jpg``, ``imagelabels.mat`` (``labels``, 1 to 102), ``setid.mat`` (images from 1, by split).

    The files do not name the classes: they are called 1 to 102. Raises UserError where a file is missing or damaged.
    """
    root = locate(existing(config.root), PLACES, "setid.mat", config.name, SOURCE)
    labels = read_arrays(root / "imagelabels.mat", ("labels",))["labels"].ravel().astype(np.int64)
    source = root / "setid.mat"
    ids = read_arrays(source, tuple(KEYS.values()))
    splits = {}
    for name, key in KEYS.items():
        rows = ids[key].ravel().astype(np.int64)
        if rows.size and not 1 <= rows.min() <= rows.max() <= len(labels):
            raise UserError(
                f"{source}: {key} should name images 1 to {len(labels)}, and names {rows.min()} to {rows.max()}"
            )
        paths = (f"jpg/image_{row:05d}.jpg" for row in rows.tolist())
        splits[name] = listed_split(name, root, paths, labels[rows - 1] - 1, source, watch)
    return Found(tuple(map(str, range(1, CLASSES + 1))), splits)


ENTRIES = {
    "oxford-flowers102": Entry(
        read=read_flowers,
        description="8,189 flowers in 102 classes, 10 of each to train on",
        source=SOURCE,
        licence="none stated; cite Nilsback and Zisserman 2008",
        classes=CLASSES,
        variants=(Variant("official", "as published", {"train": 1_020, "val": 1_020, "test": 6_149}),),
    )
}

"""BUSI, breast ultrasound images (Al-Dhabyani et al. 2020): many near-duplicates, and masks among the images."""

from __future__ import annotations

import re

import numpy as np

from mlx_peft.config import schema
from mlx_peft.data.entry import Entry, Found, Variant
from mlx_peft.data.leftout import LeftOut
from mlx_peft.data.lists import left_out, locate
from mlx_peft.data.looking import Watch
from mlx_peft.data.sets.folder import existing, read_classes

SOURCE = "https://scholar.cu.edu.eg/?q=afahmy/pages/dataset"
PLACES = (".", "Dataset_BUSI_with_GT", "BUSI")
CLASSES = ("benign", "malignant", "normal")
MASK = re.compile(r"_mask(_\d+)?\.\w+$")


def read_busi(config: schema.Data, variant: Variant, watch: Watch) -> Found:
    """``benign/benign (1).png`` and so on; the masks beside them, ``benign (1)_mask.png``, are left out.

    Raises UserError where a class is missing or has masks alone.
    """
    root = locate(existing(config.root), PLACES, CLASSES[1], config.name, SOURCE)
    notes = LeftOut()
    classes, whole = read_classes("train", root, "", notes, watch)
    masks = [path for path in whole.images.identifiers if MASK.search(path)]
    rows = np.array([row for row, path in enumerate(whole.images.identifiers) if not MASK.search(path)], np.int64)
    return Found(
        classes,
        {"train": whole.take(rows, "train")},
        notes.notes() + ((left_out("masks", masks),) if masks else ()),
    )


ENTRIES = {
    "busi": Entry(
        read=read_busi,
        description="780 breast ultrasound images: 437 benign, 210 malignant, 133 normal",
        source=SOURCE,
        licence="none stated; cite Al-Dhabyani et al. 2020",
        classes=len(CLASSES),
        names=CLASSES,
        variants=(
            Variant("whole", "no split of its own: data.split makes them, near-duplicates together", {"train": 780}),
        ),
        near_duplicates=True,
    )
}

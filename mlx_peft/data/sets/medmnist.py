"""MedMNIST's 2-D sets (Yang et al. 2023) in their four sizes: arrays of 28 to 224 pixels in one npz archive each."""

from __future__ import annotations

from functools import partial

import numpy as np

from mlx_peft.config import schema
from mlx_peft.core.errors import UserError
from mlx_peft.core.text import counted
from mlx_peft.data.archives import read_npz
from mlx_peft.data.dataset import ArrayImages, Split
from mlx_peft.data.download import Remote, fetch
from mlx_peft.data.entry import SPLITS, Entry, Found, Variant
from mlx_peft.data.lists import locate
from mlx_peft.data.looking import Watch
from mlx_peft.data.sets.folder import existing
from mlx_peft.data.sets.medmnist_sets import MD5, SETS, MedSet

PREFIX = "medmnist:"
SOURCE = "https://zenodo.org/records/10519652"
SIDES = (28, 64, 128, 224)
PLACES = (".", "medmnist")


def read_medmnist(name: str, config: schema.Data, variant: Variant, watch: Watch) -> Found:
    """``NAME.npz`` (28 px) or ``NAME_64.npz``: ``{train,val,test}_{images,labels}``, labels uint8 ``(n, 1)``.

    Images are uint8 ``(n, side, side)``, grey, or ``(n, side, side, 3)``. ChestMNIST's labels are ``(n, 14)`` of 0 and
    1: an image may have any of its findings, or none. Raises UserError where the archive is missing, damaged or another
    one: not as many images as published is told from the headers, before anything is unpacked.
    """
    medset, side = SETS[name], int(variant.name)
    stem = name if side == SIDES[0] else f"{name}_{side}"
    notes: tuple[str, ...] = ()
    if config.download and not any((config.root / place / f"{stem}.npz").exists() for place in PLACES):
        url = f"{SOURCE}/files/{stem}.npz?download=1"
        fetch(Remote(url, None, md5=MD5[name][SIDES.index(side)]), config.root)
        notes = (f"downloaded {url}",)
    source = f"{SOURCE}, which data.download: true does"
    path = locate(existing(config.root), PLACES, f"{stem}.npz", config.name, source) / f"{stem}.npz"
    image = (side, side) if medset.channels == 1 else (side, side, 3)
    answers = len(medset.classes) if medset.findings else 1
    sizes = {split: variant.sizes.get(split, -1) for split in SPLITS}
    shapes: dict[str, tuple[int, ...]] = {f"{split}_images": (size, *image) for split, size in sizes.items()}
    arrays = read_npz(path, shapes | {f"{split}_labels": (size, answers) for split, size in sizes.items()})
    splits = {}
    for split in SPLITS:
        pixels, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"]
        if medset.findings:
            labels = np.where(np.isin(labels, (0, 1)), labels, 2).astype(np.uint8)  # what is neither stays neither
        else:
            labels = labels[:, 0].astype(np.int64)
        if pixels.dtype != np.uint8 or len(pixels) != len(labels):
            images = counted(len(pixels), f"{split} image")
            raise UserError(f"{path}: {images}, {pixels.dtype}, and {counted(len(labels), 'label')}")
        splits[split] = Split(split, ArrayImages.whole(pixels, split), labels, task=medset.task)
    return Found(medset.classes, splits, notes)


def _variants(medset: MedSet) -> tuple[Variant, ...]:
    sizes = {"train": medset.train, "val": medset.val, "test": medset.test}
    return tuple(Variant(str(side), f"{side} px, splits as published", sizes) for side in SIDES)


ENTRIES = {
    f"{PREFIX}{name}": Entry(
        read=partial(read_medmnist, name),
        description=f"MedMNIST, {medset.shows}: {medset.train + medset.val + medset.test:,} images"
        + ("; several labels an image" if medset.findings else ""),
        source=SOURCE,
        licence=medset.licence,
        classes=len(medset.classes),
        names=medset.classes,
        variants=_variants(medset),
        task=medset.task,
    )
    for name, medset in SETS.items()
}

"""MedMNIST's 2-D sets (Yang et al. 2023) in their four sizes: arrays of 28 to 224 pixels in one npz archive each."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np

from mlx_peft.config import schema
from mlx_peft.config.errors import UserError
from mlx_peft.data.archives import read_npz
from mlx_peft.data.dataset import ArrayImages, Split
from mlx_peft.data.entry import SPLITS, Entry, Found, Variant
from mlx_peft.data.lists import locate
from mlx_peft.data.sets.folder import existing

PREFIX = "medmnist:"
SOURCE = "https://zenodo.org/records/10519652"
SIDES = (28, 64, 128, 224)


@dataclass(frozen=True)
class MedSet:
    """One of the sets: what it shows, its classes in the order of their labels, its sizes, and its channels."""

    shows: str
    classes: tuple[str, ...]
    train: int
    val: int
    test: int
    channels: int = 1
    licence: str = "CC BY 4.0"
    multi_label: bool = False


_ORGANS = (
    "bladder",
    "femur-left",
    "femur-right",
    "heart",
    "kidney-left",
    "kidney-right",
    "liver",
    "lung-left",
    "lung-right",
    "pancreas",
    "spleen",
)
SETS: dict[str, MedSet] = {
    "pathmnist": MedSet(
        "colon tissue under the microscope",
        (
            "adipose",
            "background",
            "debris",
            "lymphocytes",
            "mucus",
            "smooth muscle",
            "normal colon mucosa",
            "cancer-associated stroma",
            "colorectal adenocarcinoma epithelium",
        ),
        89_996,
        10_004,
        7_180,
        channels=3,
    ),
    "chestmnist": MedSet(
        "chest X-rays, 14 findings that may occur together",
        (
            "atelectasis",
            "cardiomegaly",
            "effusion",
            "infiltration",
            "mass",
            "nodule",
            "pneumonia",
            "pneumothorax",
            "consolidation",
            "edema",
            "emphysema",
            "fibrosis",
            "pleural",
            "hernia",
        ),
        78_468,
        11_219,
        22_433,
        multi_label=True,
    ),
    "dermamnist": MedSet(
        "skin lesions",
        (
            "actinic keratoses and intraepithelial carcinoma",
            "basal cell carcinoma",
            "benign keratosis-like lesions",
            "dermatofibroma",
            "melanoma",
            "melanocytic nevi",
            "vascular lesions",
        ),
        7_007,
        1_003,
        2_005,
        channels=3,
        licence="CC BY-NC 4.0",
    ),
    "octmnist": MedSet(
        "retinal tomography",
        ("choroidal neovascularization", "diabetic macular edema", "drusen", "normal"),
        97_477,
        10_832,
        1_000,
    ),
    "pneumoniamnist": MedSet("chest X-rays of children", ("normal", "pneumonia"), 4_708, 524, 624),
    "retinamnist": MedSet(
        "eye grounds, five grades of retinopathy", ("0", "1", "2", "3", "4"), 1_080, 120, 400, channels=3
    ),
    "breastmnist": MedSet("breast ultrasound", ("malignant", "normal, benign"), 546, 78, 156),
    "bloodmnist": MedSet(
        "blood cells",
        (
            "basophil",
            "eosinophil",
            "erythroblast",
            "immature granulocytes",
            "lymphocyte",
            "monocyte",
            "neutrophil",
            "platelet",
        ),
        11_959,
        1_712,
        3_421,
        channels=3,
    ),
    "tissuemnist": MedSet(
        "kidney cortex cells",
        (
            "Collecting Duct, Connecting Tubule",
            "Distal Convoluted Tubule",
            "Glomerular endothelial cells",
            "Interstitial endothelial cells",
            "Leukocytes",
            "Podocytes",
            "Proximal Tubule Segments",
            "Thick Ascending Limb",
        ),
        165_466,
        23_640,
        47_280,
    ),
    "organamnist": MedSet("abdominal organs, axial tomography", _ORGANS, 34_561, 6_491, 17_778),
    "organcmnist": MedSet("abdominal organs, coronal tomography", _ORGANS, 12_975, 2_392, 8_216),
    "organsmnist": MedSet("abdominal organs, sagittal tomography", _ORGANS, 13_932, 2_452, 8_827),
}


def read_medmnist(name: str, config: schema.Data, variant: Variant) -> Found:
    """``NAME.npz`` (28 px) or ``NAME_64.npz``: ``{train,val,test}_{images,labels}``, labels uint8 ``(n, 1)``.

    Images are uint8 ``(n, side, side)``, grey, or ``(n, side, side, 3)``. Raises UserError where the archive is
    missing, damaged or another one, and for ChestMNIST, whose images have several labels each.
    """
    medset, side = SETS[name], int(variant.name)
    if medset.multi_label:
        raise UserError(
            f"data.name: each image of {name} may have any of 14 findings, or none: it has no one label to train on; "
            "this project trains single-label classifiers"
        )
    stem = name if side == SIDES[0] else f"{name}_{side}"
    path = locate(existing(config.root), (".", "medmnist"), f"{stem}.npz", config.name, SOURCE) / f"{stem}.npz"
    image = (-1, side, side) if medset.channels == 1 else (-1, side, side, 3)
    arrays = read_npz(path, {f"{split}_images": image for split in SPLITS} | {f"{s}_labels": (-1, 1) for s in SPLITS})
    splits = {}
    for split in SPLITS:
        pixels, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"][:, 0].astype(np.int64)
        if pixels.dtype != np.uint8 or len(pixels) != len(labels):
            raise UserError(f"{path}: {len(pixels)} {split} images, {pixels.dtype}, and {len(labels)} labels")
        splits[split] = Split(split, ArrayImages.whole(pixels, split), labels)
    return Found(medset.classes, splits)


def _variants(medset: MedSet) -> tuple[Variant, ...]:
    sizes = {"train": medset.train, "val": medset.val, "test": medset.test}
    return tuple(Variant(str(side), f"{side} px, splits as published", sizes) for side in SIDES)


ENTRIES = {
    f"{PREFIX}{name}": Entry(
        read=partial(read_medmnist, name),
        description=f"MedMNIST, {medset.shows}: {medset.train + medset.val + medset.test:,} images",
        source=SOURCE,
        licence=medset.licence,
        classes=len(medset.classes),
        names=medset.classes,
        variants=_variants(medset),
    )
    for name, medset in SETS.items()
}

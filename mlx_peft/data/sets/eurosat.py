"""EuroSAT (Helber et al. 2019): 27,000 Sentinel-2 patches of 64 x 64 pixels, RGB, in 10 kinds of land use."""

from __future__ import annotations

from mlx_peft.config import schema
from mlx_peft.data.entry import Entry, Found, Variant
from mlx_peft.data.leftout import LeftOut
from mlx_peft.data.lists import locate
from mlx_peft.data.looking import Watch
from mlx_peft.data.sets.folder import existing, read_classes

SOURCE = "https://zenodo.org/records/7711810"
PLACES = (".", "2750", "EuroSAT/2750", "eurosat/2750", "EuroSAT_RGB")
CLASSES = (
    "AnnualCrop",
    "Forest",
    "HerbaceousVegetation",
    "Highway",
    "Industrial",
    "Pasture",
    "PermanentCrop",
    "Residential",
    "River",
    "SeaLake",
)


def read_eurosat(config: schema.Data, variant: Variant, watch: Watch) -> Found:
    """``2750/CLASS/CLASS_1.jpg``. The set has no split of its own. Raises UserError where a class is missing."""
    root = locate(existing(config.root), PLACES, CLASSES[0], config.name, SOURCE)
    notes = LeftOut()
    classes, train = read_classes("train", root, "", notes, watch)
    return Found(classes, {"train": train}, notes.notes())


ENTRIES = {
    "eurosat": Entry(
        read=read_eurosat,
        description="27,000 satellite images of 64 px in 10 kinds of land use",
        source=SOURCE,
        licence="MIT",
        classes=len(CLASSES),
        names=CLASSES,
        variants=(Variant("whole", "no split of its own: data.split makes them", {"train": 27_000}),),
    )
}

"""ImageNet-1k (ILSVRC 2012; Russakovsky et al. 2015) as class folders: 1.28 million photographs of 1,000 classes."""

from __future__ import annotations

from pathlib import Path

from mlx_peft.config import schema
from mlx_peft.core.errors import UserError
from mlx_peft.data.entry import Entry, Found, Variant
from mlx_peft.data.leftout import LeftOut
from mlx_peft.data.lists import locate
from mlx_peft.data.looking import Watch
from mlx_peft.data.sets.folder import existing, read_classes

SOURCE = "https://image-net.org/download-images"
PLACES = (".", "imagenet", "ILSVRC/Data/CLS-LOC", "ILSVRC2012")
OFFICIAL = Variant(
    "official",
    "tested on the 50,000 of the val folder; validation images come from train",
    {"train": 1_281_167, "test": 50_000},
)


def read_imagenet(config: schema.Data, variant: Variant, watch: Watch) -> Found:
    """``train/WNID/*.JPEG`` and ``val/WNID/*.JPEG``; class names are WordNet's identifiers, sorted.

    Raises UserError where a folder is missing, and where the images of ``val`` are not sorted into classes.
    """
    root = locate(existing(config.root), PLACES, "train", config.name, SOURCE)
    notes = LeftOut()
    classes, train = read_classes("train", root, "train", notes, watch)
    val = root / "val"
    if not val.is_dir() or not _sorted_into(val, classes):
        raise UserError(
            f"{val} holds no class folders; as published the images of val lie in one folder without labels: move each "
            f"into a folder of its class, {val}/{classes[0]}/ILSVRC2012_val_00000001.JPEG"
        )
    _, test = read_classes("test", root, "val", notes, watch, classes)
    return Found(classes, {"train": train, "test": test}, notes.notes())


def _sorted_into(folder: Path, classes: tuple[str, ...]) -> bool:
    return any((folder / name).is_dir() for name in classes)


ENTRIES = {
    "imagenet-1k": Entry(
        read=read_imagenet,
        description="1,331,167 photographs in 1,000 classes, as class folders",
        source=SOURCE,
        licence="research and education only; registration",
        classes=1_000,
        variants=(OFFICIAL,),
    )
}

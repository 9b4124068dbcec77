"""Tiny-ImageNet (Le and Yang 2015): 200 classes of ImageNet at 64 x 64 pixels, some of them grey."""

from __future__ import annotations

from pathlib import Path

from mlx_peft.config import schema
from mlx_peft.data.dataset import Split
from mlx_peft.data.entry import Entry, Found, Variant
from mlx_peft.data.leftout import LeftOut
from mlx_peft.data.lists import labels_of, listed_split, locate, read_rows
from mlx_peft.data.looking import Watch
from mlx_peft.data.sets.folder import existing, read_classes

SOURCE = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
PLACES = (".", "tiny-imagenet-200")
OFFICIAL = Variant(
    "official", "trained on the train folder, tested on the val folder", {"train": 100_000, "test": 10_000}
)
CARVED = Variant(
    "80k-10k-10k",
    "the train folder alone, 10 % of each class for val and for test by data.split.seed",
    {"train": 100_000},
    shares={"val": 0.1, "test": 0.1},
)


def read_tiny_imagenet(config: schema.Data, variant: Variant, watch: Watch) -> Found:
    """``train/WNID/images/*.JPEG``, and ``val/images`` with the labels in ``val/val_annotations.txt``.

    Class names are WordNet's identifiers, sorted. The test folder has no labels and is left out. Raises UserError where
    a part is missing or names another class.
    """
    root = locate(existing(config.root), PLACES, "wnids.txt", config.name, SOURCE)
    classes = tuple(sorted(row[0] for row in read_rows(root / "wnids.txt", 1)))
    notes = LeftOut()
    _, train = read_classes("train", root, "train", notes, watch, classes)
    splits = {"train": train}
    if "test" in variant.sizes:
        splits["test"] = _annotated(root, classes, watch)
    kept = ("left out, without labels: the test folder",) if (root / "test").is_dir() else ()
    notes.others = [name for name in notes.others if not name.endswith("_boxes.txt")]
    return Found(classes, splits, notes.notes() + kept)


def _annotated(root: Path, classes: tuple[str, ...], watch: Watch) -> Split:
    """The val folder by its annotations: lines of file, class and a box."""
    source = root / "val" / "val_annotations.txt"
    rows = read_rows(source, 2)
    labels = labels_of([row[1] for row in rows], classes, source)
    return listed_split("test", root, (f"val/images/{row[0]}" for row in rows), labels, source, watch)


ENTRIES = {
    "tiny-imagenet": Entry(
        read=read_tiny_imagenet,
        description="110,000 labelled photographs of 64 px in 200 classes of ImageNet",
        source=SOURCE,
        licence="ImageNet's: research and education only",
        classes=200,
        variants=(OFFICIAL, CARVED),
    )
}

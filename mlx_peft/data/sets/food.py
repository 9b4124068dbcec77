"""Food-101 (Bossard et al. 2014): 101 dishes, their training labels noisy on purpose, their test labels cleaned."""

from __future__ import annotations

from mlx_peft.config import schema
from mlx_peft.data.entry import Entry, Found, Variant
from mlx_peft.data.lists import labels_of, listed_split, locate, read_rows
from mlx_peft.data.looking import Watch
from mlx_peft.data.sets.folder import existing

SOURCE = "https://data.vision.ee.ethz.ch/cvl/datasets_extra/food-101/"
PLACES = (".", "food-101")


def read_food(config: schema.Data, variant: Variant, watch: Watch) -> Found:
    """``meta/{train,test}.txt``, lines ``apple_pie/1005649`` for ``images/apple_pie/1005649.jpg``, and ``classes.txt``.

    Raises UserError where a list is missing, or names an image or a class that is not there.
    """
    root = locate(existing(config.root), PLACES, "meta/train.txt", config.name, SOURCE)
    classes = tuple(sorted(row[0] for row in read_rows(root / "meta" / "classes.txt", 1)))
    splits = {}
    for name in ("train", "test"):
        source = root / "meta" / f"{name}.txt"
        listed = [row[0] for row in read_rows(source, 1)]
        labels = labels_of([path.partition("/")[0] for path in listed], classes, source)
        splits[name] = listed_split(name, root, (f"images/{path}.jpg" for path in listed), labels, source, watch)
    return Found(classes, splits)


ENTRIES = {
    "food-101": Entry(
        read=read_food,
        description="101,000 photographs in 101 dishes, 25,250 of them for the test",
        source=SOURCE,
        licence="Foodspotting's, not the authors': research only",
        classes=101,
        variants=(Variant("official", "the published training and test images", {"train": 75_750, "test": 25_250}),),
    )
}

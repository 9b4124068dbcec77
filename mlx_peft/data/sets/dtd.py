"""The Describable Textures Dataset (Cimpoi et al. 2014): 47 textures, and ten published ways to part them."""

from __future__ import annotations

from pathlib import Path

from mlx_peft.config import schema
from mlx_peft.data.entry import Entry, Found, Variant
from mlx_peft.data.lists import labels_of, listed_split, locate, read_rows
from mlx_peft.data.looking import Watch
from mlx_peft.data.sets.folder import existing

SOURCE = "https://www.robots.ox.ac.uk/~vgg/data/dtd/"
PLACES = (".", "dtd", "dtd/dtd")
PARTITIONS = 10
SIZE = 1_880


def read_dtd(config: schema.Data, variant: Variant, watch: Watch) -> Found:
    """``labels/{train,val,test}N.txt``, lines ``banded/banded_0002.jpg`` below ``images``.

    Raises UserError where a list is missing, or names an image or a class that is not there.
    """
    root = locate(existing(config.root), PLACES, "labels/train1.txt", config.name, SOURCE)
    sources = {name: root / "labels" / f"{name}{variant.name}.txt" for name in ("train", "val", "test")}
    listed = {name: [row[0] for row in read_rows(source, 1)] for name, source in sources.items()}
    classes = tuple(sorted({Path(path).parent.name for path in listed["train"]}))
    splits = {
        name: listed_split(
            name,
            root,
            (f"images/{path}" for path in paths),
            labels_of([Path(path).parent.name for path in paths], classes, sources[name]),
            sources[name],
            watch,
        )
        for name, paths in listed.items()
    }
    return Found(classes, splits)


ENTRIES = {
    "dtd": Entry(
        read=read_dtd,
        description="5,640 textures in 47 classes; ten published partitions",
        source=SOURCE,
        licence="research only",
        classes=47,
        variants=tuple(
            Variant(str(number), f"the published partition {number}", dict.fromkeys(("train", "val", "test"), SIZE))
            for number in range(1, PARTITIONS + 1)
        ),
    )
}

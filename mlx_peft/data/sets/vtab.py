"""VTAB-1k (Zhai et al. 2020): 19 tasks of 1,000 training images each, in three groups."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from mlx_peft.config import schema
from mlx_peft.core.errors import UserError
from mlx_peft.data.dataset import Split
from mlx_peft.data.entry import Entry, Found, Variant
from mlx_peft.data.lists import integer, listed_split, locate, read_rows
from mlx_peft.data.looking import Watch
from mlx_peft.data.sets.folder import existing

PREFIX = "vtab-1k:"
SOURCE = "https://github.com/google-research/task_adaptation"
GROUPS = ("natural", "specialized", "structured")
Group = Literal["natural", "specialized", "structured"]


@dataclass(frozen=True)
class Task:
    """A task: its group, its number of classes and of test images."""

    group: Group
    classes: int
    test: int


TASKS: dict[str, Task] = {
    "caltech101": Task("natural", 102, 6_085),
    "cifar": Task("natural", 100, 10_000),
    "dtd": Task("natural", 47, 1_880),
    "oxford_flowers102": Task("natural", 102, 6_149),
    "oxford_iiit_pet": Task("natural", 37, 3_669),
    "svhn": Task("natural", 10, 26_032),
    "sun397": Task("natural", 397, 21_750),
    "patch_camelyon": Task("specialized", 2, 32_768),
    "eurosat": Task("specialized", 10, 5_400),
    "resisc45": Task("specialized", 45, 6_300),
    "diabetic_retinopathy": Task("specialized", 5, 42_670),
    "clevr_count": Task("structured", 8, 15_000),
    "clevr_dist": Task("structured", 6, 15_000),
    "dmlab": Task("structured", 6, 22_735),
    "kitti": Task("structured", 4, 711),
    "dsprites_loc": Task("structured", 16, 73_728),
    "dsprites_ori": Task("structured", 16, 73_728),
    "smallnorb_azi": Task("structured", 18, 12_150),
    "smallnorb_ele": Task("structured", 9, 12_150),
}

LISTS = {"tune": {"train": "train800", "val": "val200"}, "final": {"train": "train800val200", "test": "test"}}
"""The lists that each variant reads. Tuning never opens the list of the test."""


def read_task(task: str, config: schema.Data, variant: Variant, watch: Watch) -> Found:
    """``TASK/{train800,val200,train800val200,test}.txt``, lines ``images/test/000000.jpg 3``, relative to the task.

    The root is the task's folder, which is called after it, or holds that. The files do not name the classes: they are
    called by number. Raises UserError where a list or an image is missing, or where the labels are another task's.
    """
    marker = f"{LISTS[variant.name]['train']}.txt"
    inside, root = (task, f"vtab-1k/{task}"), existing(config.root)
    here = task in (config.root.absolute().name, root.name)
    if not here and (root / marker).exists() and not any((root / place / marker).exists() for place in inside):
        raise UserError(
            f"data.root: {config.root} holds a task, and its lists do not say which: the folder of {config.name} "
            f"must be called {task}"
        )
    root = locate(root, (*inside, ".") if here else inside, marker, config.name, SOURCE)
    splits = {name: _split(name, root, root / f"{listed}.txt", watch) for name, listed in LISTS[variant.name].items()}
    _not_of_fewer_classes(task, [split for name, split in splits.items() if name != "test"], root)
    return Found(tuple(map(str, range(TASKS[task].classes))), splits)


def _not_of_fewer_classes(task: str, training: list[Split], root: Path) -> None:
    """That no task of fewer classes could have these labels.

    The last class itself need not be among 1,000 images: SUN397 has 397. Raises UserError.
    """
    highest = max(int(split.labels.max()) for split in training)
    fewer = [other.classes for other in TASKS.values() if other.classes < TASKS[task].classes]
    if highest < max(fewer, default=0):
        raise UserError(
            f"{root}: the labels of the training images end at {highest}, and {task} has {TASKS[task].classes} "
            "classes: the files are another task's"
        )


def _split(name: str, root: Path, source: Path, watch: Watch) -> Split:
    rows = read_rows(source, 2)
    labels = np.array([integer(row[-1], source, number) for number, row in enumerate(rows)], np.int64)
    return listed_split(name, root, (" ".join(row[:-1]) for row in rows), labels, source, watch)


def _variants(task: Task) -> tuple[Variant, ...]:
    return (
        Variant("tune", "trained on 800 images, validated on 200; no test", {"train": 800, "val": 200}, shares={}),
        Variant("final", "trained on all 1,000 images, tested once", {"train": 1_000, "test": task.test}, shares={}),
    )


ENTRIES = {
    f"{PREFIX}{name}": Entry(
        read=partial(read_task, name),
        description=f"VTAB-1k, {task.group}: 1,000 images in {task.classes} classes to train on",
        source=SOURCE,
        licence="its source's",
        classes=task.classes,
        variants=_variants(task),
    )
    for name, task in TASKS.items()
}

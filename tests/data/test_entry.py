"""What every set states about itself, and what happens where the disk says otherwise."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mlx_peft.config import schema
from mlx_peft.core.errors import UserError
from mlx_peft.data import REGISTRY, ArrayImages, Split, find
from mlx_peft.data.entry import Entry, Found, Variant
from mlx_peft.data.opening import open_entry

OWN = {"folder", "csv", "parquet"}


@pytest.mark.parametrize("name", REGISTRY)
def test_every_set_states_its_facts(name: str) -> None:
    entry = REGISTRY[name]
    assert entry.description
    assert "\n" not in entry.description
    assert entry.licence
    if name in OWN:
        assert not entry.published
        return
    assert entry.source.startswith(("https://", "http://"))
    assert entry.classes and entry.classes >= 2
    assert entry.names is None or len(entry.names) == entry.classes
    assert len({variant.name for variant in entry.variants}) == len(entry.variants)
    for variant in entry.variants:
        assert variant.description
        assert variant.sizes["train"] > 0


def made(labels: list[int], name: str = "train", groups: list[int] | None = None) -> Split:
    images = ArrayImages.whole(np.zeros((len(labels), 2, 2), np.uint8), name)
    return Split(name, images, np.array(labels, np.int64), None if groups is None else np.array(groups))


STATED = Variant("one", "", {"train": 4, "test": 2})


def opened(found_classes: tuple[str, ...], *splits: Split, **facts: object) -> None:
    found = Found(found_classes, {split.name: split for split in splits})
    entry = Entry(lambda config, variant, watch: found, "", "", "", variants=(STATED,))
    open_entry(replace(entry, **facts), schema.Data(name="made", split=schema.Split(val=0)))  # type: ignore[arg-type]


TRAIN, TEST = made([0, 1, 0, 1]), made([0, 1], "test")


def test_what_is_as_stated_is_opened() -> None:
    opened(("a", "b"), TRAIN, TEST, classes=2, names=("b", "a"))


@pytest.mark.parametrize(
    ("classes", "splits", "facts", "message"),
    [
        (("a", "b"), (made([0, 1]), TEST), {}, "2 train images, not 4"),
        (("a", "b"), (TRAIN,), {}, "0 test images, not 2"),
        (("a", "b", "c"), (TRAIN, TEST), {"classes": 2}, "3 classes, not 2"),
        (("a", "b"), (TRAIN, TEST), {"names": ("a", "c", "d")}, "no 'c', 'd'; 'b', which it does not have"),
        (("a", "a"), (TRAIN, TEST), {}, "two classes have the name 'a'"),
        (("a", "b\udcff"), (TRAIN, TEST), {}, r"the class name 'b\xff' is not text in UTF-8: rename it"),
        (
            ("a",),
            (made([0] * 4), made([0] * 2, "test")),
            {},
            "there is only one class, 'a', and nothing to tell it from",
        ),
        (("a", "b"), (made([0, 1, 0, 2]), TEST), {}, "train labels 0 to 2, not 0 to 1"),
        (("a", "b"), (made([0, 1, -1, 1]), TEST), {}, "train labels -1 to 1, not 0 to 1"),
        (("a", "b"), (TRAIN, TEST, made([], "val")), {}, "no val images"),
        (
            ("a", "b"),
            (made([0, 1, 0, 1], groups=[1, 2, 3, 4]), replace(TEST, groups=np.array([5, 4]))),
            {},
            "1 group (the first: 4) with images in train and in test",
        ),
    ],
)
def test_what_is_not_as_stated_is_refused(
    classes: tuple[str, ...], splits: tuple[Split, ...], facts: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match="made in data: .*" + re.escape(message)):
        opened(classes, *splits, **facts)


CLASSES = ("a", "b", "c", "d", "e", "f")


def test_classes_that_a_split_has_no_images_of_are_noted() -> None:
    """Of a published set: the training images of VTAB's SUN397 lack some."""
    sizes = {"train": 4, "test": 2}
    found = Found(CLASSES, {"train": made([0, 1, 0, 5]), "test": made([1, 2], "test")})
    entry = Entry(lambda config, variant, watch: found, "", "", "", variants=(replace(STATED, sizes=sizes),))
    config = schema.Data(name="made", split=schema.Split(val=0))
    assert open_entry(entry, config).notes == (
        "no images of 'c', 'd', 'e' in train",
        "no images of 'a', 'd', 'e' and 1 more in test",
    )


def test_a_class_of_one_s_own_without_training_images_is_refused() -> None:
    def own(*splits: Split, **split: float) -> tuple[str, ...]:
        found = Found(CLASSES[:3], {split.name: split for split in splits})
        entry = Entry(lambda config, variant, watch: found, "", "", "")
        return open_entry(entry, schema.Data(name="made", split=schema.Split(**{"val": 0, **split}))).notes

    with pytest.raises(UserError, match=r"made in data: there are no images of 'c' in train, and some in val"):
        own(made([0, 1, 0, 1]), made([1, 2], "val"))
    in_groups = made([0, 0, 0, 0, 1, 1, 0, 2, 0, 0], groups=[1, 1, 1, 1, 2, 3, 0, 0, 0, 0])
    one, other = 1, 0  # the seeds that hold out the group with the only 'c', and the one without
    with pytest.raises(UserError, match=r"no images of 'c' in train, and some in val"):
        own(in_groups, val=0.5, seed=one)
    assert "no images of 'c' in val" in own(in_groups, val=0.5, seed=other)
    assert "no images of 'c' in val" in own(made([0, 1, 2, 1]), made([1, 0], "val"))
    assert own(made([0, 1, 0, 1])) == ("no images of 'c' in train",), "of no split at all: a name in a schema"


def test_an_unknown_name_or_variant_is_met_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"unknown data set 'vtab-1k:cifar10'; did you mean 'vtab-1k:cifar'"):
        find("vtab-1k:cifar10")
    with pytest.raises(
        UserError,
        match=r"unknown data set '/.*'; but a file or folder here .* folder, data\.root: /",
    ):
        find(str(tmp_path))
    with pytest.raises(
        UserError, match=r"data\.variant: tiny-imagenet has no variant '80k'.*there is official, 80k-10k"
    ):
        REGISTRY["tiny-imagenet"].variant("tiny-imagenet", "80k")

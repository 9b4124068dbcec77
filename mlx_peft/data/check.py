"""A data set looked through, every image of it: what there is, what is broken, and what is there twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from mlx_peft.core.errors import UserError
from mlx_peft.data.checked import Memory
from mlx_peft.data.dataset import ADVICE, Dataset, EncodedImages, FileImages, Images, Split
from mlx_peft.data.duplicates import Glances, glance, pixel_hash, same
from mlx_peft.data.looking import Watch, each, unwatched
from mlx_peft.data.memory import one_image
from mlx_peft.data.reading import stored_as
from mlx_peft.tasks.task import NONE, Task


@dataclass(frozen=True)
class Look:
    """One image: its hash, a glance at it, its size, whether it has colour, what its file is; or why it is broken."""

    pixels: bytes | None = None
    seen: bytes | None = None
    size: tuple[int, int] = (0, 0)
    colour: bool = False
    form: str = ""
    broken: str = ""


@dataclass(frozen=True, eq=False)
class Pair:
    """An image of a later split, and the first that it equals or resembles in an earlier one: rows of the survey."""

    later: int
    earlier: int


@dataclass(frozen=True, eq=False)
class Survey:
    """All images of a set, split after split. split: int64 ``(n,)``; label: as the task has it; the pairs are across
    splits."""

    dataset: Dataset
    looks: Sequence[Look]
    split: np.ndarray
    label: np.ndarray
    exact: Sequence[Pair]
    near: Sequence[Pair]
    relabelled: Sequence[Pair]

    def place(self, row: int) -> tuple[str, int]:
        """The split of a row, and its place there."""
        part = int(self.split[row])
        return list(self.dataset.splits)[part], row - int(np.searchsorted(self.split, part))

    def named(self, row: int) -> dict[str, str]:
        """What a person needs to find the image of a row."""
        name, place = self.place(row)
        label = self.dataset.task.named(self.label[row], self.dataset.classes)
        return {"split": name, "image": self._identifiers[name][place], "class": label}

    @cached_property
    def _identifiers(self) -> dict[str, Sequence[str]]:
        return {name: split.images.identifiers for name, split in self.dataset.splits.items()}

    @property
    def broken(self) -> list[int]:
        """The rows that cannot be read."""
        return [row for row, look in enumerate(self.looks) if look.broken]

    @property
    def sound(self) -> bool:
        """Whether every image can be read and none of them is in two splits. Near-duplicates are for a person."""
        return not self.broken and not self.exact

    def report(self, named: int | None = None) -> dict[str, Any]:
        """The findings, ready for JSON; of broken images and pairs at most so many are named, all are counted."""
        whole = [look for look in self.looks if not look.broken]
        sides = np.array([look.size for look in whole]).reshape(-1, 2)
        copies = len(whole) - len({look.pixels for look in whole})

        def pairs(found: Sequence[Pair]) -> dict[str, Any]:
            listed = [[self.named(pair.later), self.named(pair.earlier)] for pair in found[:named]]
            return {"count": len(found), "pairs": listed}

        return {
            "name": self.dataset.name,
            "classes": list(self.dataset.classes),
            "splits": {
                name: {"size": split.size, "sha256": split.sha256, "by_class": self._by_class(split.labels)}
                for name, split in self.dataset.splits.items()
            },
            "height": _spread(sides[:, 0]),
            "width": _spread(sides[:, 1]),
            "different_sizes": len(np.unique(sides, axis=0)),
            "channels": {"grey": sum(not look.colour for look in whole), "colour": sum(look.colour for look in whole)},
            "files": dict(Counter(look.form for look in whole).most_common()),
            "broken": {
                "count": len(self.broken),
                "images": [{**self.named(row), "reason": self.looks[row].broken} for row in self.broken[:named]],
            },
            "copies": copies,
            "equal_across_splits": pairs(self.exact),
            "equal_with_another_label": pairs(self.relabelled),
            "near_across_splits": pairs(self.near),
            "notes": list(self.dataset.notes),
        }

    def _by_class(self, label: np.ndarray) -> dict[str, int]:
        task = self.dataset.task
        counts = task.counts(label, len(self.dataset.classes)).tolist()
        found = dict(zip(self.dataset.classes, counts, strict=True))
        return found if (none := task.rows_of_none(label)) is None else found | {NONE: len(none)}


def survey(dataset: Dataset, threads: int, memory: Memory | None = None, watch: Watch = unwatched) -> Survey:
    """Reads every image once, whatever is remembered. None is kept, and none that is broken ends it.

    memory: of the images that can be read; is made anew.
    """
    splits = list(dataset.splits.values())
    encoded = [isinstance(split.images, FileImages | EncodedImages) for split in splits]
    marks = [split.images.marks() for split in splits if isinstance(split.images, FileImages | EncodedImages)]
    looks = [look for split in splits for look in _looks(split, threads, watch)]
    number = np.repeat(np.arange(len(splits)), [split.size for split in splits])
    label = np.concatenate([split.labels for split in splits])
    pixels, seen = [look.pixels for look in looks], [look.seen for look in looks]
    if memory is not None and marks:
        whole = np.array([not look.broken for look in looks])[np.repeat(encoded, [split.size for split in splits])]
        memory.keep(np.concatenate(marks)[whole])
    copies, groups = same(pixels), same(seen)
    exact = _across(copies, np.arange(len(copies)), number)
    known = {pair.later for pair in exact}
    near = _across(groups, Glances([seen[rows[0]] or b"" for rows in groups]).firsts(), number)
    return Survey(
        dataset,
        looks,
        number,
        label,
        exact,
        [pair for pair in near if pair.later not in known],
        list(_relabelled(copies, label, dataset.task)),
    )


def _looks(split: Split, threads: int, watch: Watch) -> Iterator[Look]:
    rows, what = range(split.size), f"reading the images of {split.name}"
    return each(lambda row: _look(split.images, row), rows, threads, what, watch)


def _look(images: Images, row: int) -> Look:
    with one_image():
        try:
            image = images.read(row)
        except UserError as error:
            return Look(broken=str(error).removesuffix(ADVICE))
        colour = not (np.array_equal(image[..., 0], image[..., 1]) and np.array_equal(image[..., 0], image[..., 2]))
        form = "array" if not isinstance(images, FileImages | EncodedImages) else stored_as(images.encoded(row))
        return Look(pixel_hash(image), glance(image), (image.shape[0], image.shape[1]), colour, form)


def _across(groups: Sequence[np.ndarray], first: np.ndarray, split: np.ndarray) -> list[Pair]:
    """Each image of a split that has a partner in an earlier one, with the first such partner.

    groups: rows that are alike, in the order of their first ones; first: int64 ``(groups,)``, the first group that each
    one resembles. Rows are numbered split after split: so where the first partner is not in an earlier split, none is.
    """
    found = []
    for rows, partner in zip(groups, (groups[place][0] for place in first.tolist()), strict=True):
        found += [Pair(row, int(partner)) for row in rows[split[rows] > split[partner]].tolist()]
    return sorted(found, key=lambda pair: pair.later)


def _relabelled(groups: Sequence[np.ndarray], label: np.ndarray, task: Task) -> Iterator[Pair]:
    """Equal images whose labels differ."""
    for rows in groups:
        for row in rows[task.differ(label[rows], label[rows[0]])].tolist():
            yield Pair(row, int(rows[0]))


def _spread(sides: np.ndarray) -> dict[str, int]:
    if not sides.size:
        return {}
    return {"min": int(sides.min()), "median": int(np.median(sides)), "max": int(sides.max())}

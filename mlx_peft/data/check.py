"""A data set looked through, every image of it: what there is, what is broken, and what is there twice."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from mlx_peft.config import schema
from mlx_peft.data.dataset import Dataset
from mlx_peft.data.duplicates import Glances, equals, look_alikes
from mlx_peft.data.looking import Watch, unwatched
from mlx_peft.data.read_all import all_read
from mlx_peft.data.seen import there
from mlx_peft.tasks.task import NONE, Task


@dataclass(frozen=True, eq=False)
class Pair:
    """An image of a later split, and the first that it equals or resembles in an earlier one: rows of the survey."""

    later: int
    earlier: int


@dataclass(frozen=True, eq=False)
class Survey:
    """All images of a set, split after split.

    records: LOOKs ``(n,)``; reasons: why an image is broken, by row; split: int64 ``(n,)``; label: as the task has it;
    the pairs are across splits.
    """

    dataset: Dataset
    records: np.ndarray
    reasons: Mapping[int, str]
    split: np.ndarray
    label: np.ndarray
    copies: int
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
        return sorted(self.reasons)

    @property
    def sound(self) -> bool:
        """Whether every image can be read and none of them is in two splits. Near-duplicates are for a person."""
        return not self.broken and not self.exact

    def report(self, named: int | None = None) -> dict[str, Any]:
        """The findings, ready for JSON; of broken images and pairs at most so many are named, all are counted."""
        whole = there(self.records)
        sides, colour = self.records["size"][whole].astype(np.int64), int(self.records["colour"][whole].sum())

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
            "different_sizes": len(np.unique(sides[:, 0] << 32 | sides[:, 1])),
            "channels": {"grey": len(sides) - colour, "colour": colour},
            "files": _files(self.records["form"][whole]),
            "broken": {
                "count": len(self.broken),
                "images": [{**self.named(row), "reason": self.reasons[row]} for row in self.broken[:named]],
            },
            "copies": self.copies,
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


def survey(dataset: Dataset, threads: int, config: schema.Data | None = None, watch: Watch = unwatched) -> Survey:
    """Reads every image once: see ``all_read``, also for the configuration."""
    with all_read(dataset, threads, config, watch) as looks:
        sizes = [split.size for split in dataset.splits.values()]
        split = np.repeat(np.arange(len(sizes)), sizes)
        label = np.concatenate([split.labels for split in dataset.splits.values()])
        equal, alike = equals(looks.records), _first_alike(looks.records)
        exact = np.flatnonzero(split > split[equal])
        near = np.setdiff1d(np.flatnonzero(split > split[alike]), exact)
        if looks.before:
            note = f"{looks.before:,} images were read by an earlier check, which was broken off, and have not changed"
            dataset = replace(dataset, notes=(*dataset.notes, note))
        return Survey(
            dataset,
            looks.records,
            looks.broken,
            split,
            label,
            int((equal != np.arange(len(equal))).sum()),
            _pairs(exact, equal),
            _pairs(near, alike),
            list(_relabelled(equal, label, dataset.task)),
        )


def _first_alike(records: np.ndarray) -> np.ndarray:
    """Of each image the first that it resembles, or the first that is like the first that it resembles, int64 ``(n,)``;
    itself where there is none."""
    same, first = look_alikes(records), np.arange(len(records))
    rows = np.flatnonzero(same >= 0)
    different = rows[same[rows] == rows]
    first[different] = different[Glances(records, different).firsts()]
    first[rows] = first[same[rows]]
    return first


def _pairs(later: np.ndarray, earlier: np.ndarray) -> list[Pair]:
    """Of images that have a partner in an earlier split, with the first such one. Rows are numbered split after split:
    so where the first partner is not in an earlier split, none is."""
    return list(map(Pair, later.tolist(), earlier[later].tolist()))


def _relabelled(equal: np.ndarray, label: np.ndarray, task: Task) -> Iterator[Pair]:
    """Equal images whose labels differ."""
    copies = np.flatnonzero(equal != np.arange(len(equal)))
    copies = copies[np.argsort(equal[copies], kind="stable")]
    for rows in np.split(copies, np.flatnonzero(np.diff(equal[copies])) + 1) if len(copies) else ():
        first = int(equal[rows[0]])
        for row in rows[task.differ(label[rows], label[first])].tolist():
            yield Pair(row, first)


def _files(forms: np.ndarray) -> dict[str, int]:
    """How many files there are of each form, the commonest first."""
    names, first, counts = np.unique(forms, return_index=True, return_counts=True)
    order = np.lexsort((first, -counts))
    return {name.decode(): count for name, count in zip(names[order].tolist(), counts[order].tolist(), strict=True)}


def _spread(sides: np.ndarray) -> dict[str, int]:
    if not sides.size:
        return {}
    return {"min": int(sides.min()), "median": int(np.median(sides)), "max": int(sides.max())}

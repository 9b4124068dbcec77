"""The terms of a batch's rows, brought together from what each row's adapter has."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mlx_peft.adaptation.forms import NEUTRAL, Form
from mlx_peft.adaptation.terms import Array, Layers

Held = Mapping[str, Mapping[str, Tensor]]
"""Terms by the path of a layer or a block and by their names, see ``adaptation.terms``: one adapter's, or with another
axis before the others those of a batch's rows."""

Groups = Sequence[tuple[int, Held]]
"""So many rows of a batch, which stand beside one another, and their terms: of all of them alike, or of each."""

SHARED = "shared"
"""The array of what several layers share."""


class Laid(Mapping[str, Mapping[str, Tensor]]):
    """An adapter's terms, with those of a layer in one array: one copy brings a layer's of several adapters together.

    Args:
        layers: its terms; what several layers share is held once.
        device: where they are held.

    Attributes:
        arrays: by the layer's or the block's path, and what several share.
        places: by path and name: in which array a term stands, from where on, and its shape. Adapters whose terms are
            alike in form have the same.
    """

    def __init__(self, layers: Layers, device: torch.device) -> None:
        asked = Counter(id(array) for own in layers.values() for array in own.values())
        parts: dict[str, list[Array]] = {}
        placed: dict[int, tuple[str, int, torch.Size]] = {}
        for path, own in layers.items():
            for array in own.values():
                if id(array) not in placed:
                    part = SHARED if asked[id(array)] > 1 else path
                    before = parts.setdefault(part, [])
                    placed[id(array)] = part, sum(one.size for one in before), torch.Size(array.shape)
                    before.append(array.ravel())
        self.arrays = {part: torch.tensor(np.concatenate(found), device=device) for part, found in parts.items()}
        self.places = {path: {name: placed[id(array)] for name, array in own.items()} for path, own in layers.items()}
        self._terms = {path: _cut(self.arrays.__getitem__, own) for path, own in self.places.items()}
        self.form = frozenset((path, name, *place) for path, own in self.places.items() for name, place in own.items())

    def __getitem__(self, path: str) -> Mapping[str, Tensor]:
        return self._terms[path]

    def __iter__(self) -> Iterator[str]:
        return iter(self._terms)

    def __len__(self) -> int:
        return len(self._terms)


def _cut(array_of: Callable[[str], Tensor], own: Mapping[str, tuple[str, int, torch.Size]]) -> dict[str, Tensor]:
    """Terms out of the arrays in which they stand, by the arrays' last axis."""
    return {
        name: (whole := array_of(part))[..., start : start + shape.numel()].view(*whole.shape[:-1], *shape)
        for name, (part, start, shape) in own.items()
    }


class Beside(Mapping[str, Mapping[str, Tensor]]):
    """Terms of rows that are alike in form: a layer's are copied beside one another when it asks for them, and let go
    when the next one does.

    Args:
        rows: each one's terms, those of one adapter beside one another.
    """

    def __init__(self, rows: Sequence[Laid]) -> None:
        self.rows = rows
        runs = ([*same] for _, same in groupby(rows, key=id))
        self.runs = [(len(same), same[0]) for same in runs]
        self.copied: dict[str, Tensor] = {}

    def __getitem__(self, path: str) -> Each:
        return Each([(count, row[path]) for count, row in self.runs], lambda: self._copied(path))

    def _copied(self, path: str) -> Mapping[str, Tensor]:
        return _cut(self._array, self.rows[0].places[path])

    def _array(self, part: str) -> Tensor:
        if part not in self.copied:
            self.copied = {kept: array for kept, array in self.copied.items() if SHARED in (kept, part)}
            self.copied[part] = torch.stack([row.arrays[part] for row in self.rows])
        return self.copied[part]

    def __iter__(self) -> Iterator[str]:
        return iter(self.rows[0])

    def __len__(self) -> int:
        return len(self.rows[0])

    def __contains__(self, path: object) -> bool:
        return path in self.rows[0]


class Each(Mapping[str, Tensor]):
    """A layer's terms of rows that are alike in form: by their names beside one another, which copies them.

    Args:
        runs: how many rows, which stand beside one another, have an adapter, and its terms, where they lie.
        copied: gives those of all rows, beside one another.
    """

    def __init__(
        self, runs: Sequence[tuple[int, Mapping[str, Tensor]]], copied: Callable[[], Mapping[str, Tensor]]
    ) -> None:
        self.runs, self.copied = runs, copied

    def __getitem__(self, name: str) -> Tensor:
        return self.copied()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.runs[0][1])

    def __len__(self) -> int:
        return len(self.runs[0][1])

    def __contains__(self, name: object) -> bool:
        return name in self.runs[0][1]


def alike_together(rows: Sequence[Laid | None]) -> list[int]:
    """The order in which rows of one adapter stand beside one another, and those whose terms are alike in form."""
    groups: dict[object, dict[int, list[int]]] = {}
    for at, row in enumerate(rows):
        groups.setdefault(_form(row), {}).setdefault(id(row), []).append(at)
    return [at for own in groups.values() for same in own.values() for at in same]


def grouped(rows: Sequence[Laid | None]) -> Groups:
    """What ``mixing`` takes of rows that stand so: a group has those that are alike in form. Of one adapter nothing is
    copied."""
    return [(len(own), _beside(own)) for own in ([*alike] for _, alike in groupby(rows, key=_form))]


def _form(row: Laid | None) -> object:
    return None if row is None else row.form


def _beside(rows: Sequence[Laid | None]) -> Held:
    first = rows[0]
    if first is None or all(row is first for row in rows):
        return first or {}
    return Beside([row for row in rows if row is not None])


def gathered(rows: Sequence[Held | None], form: Form) -> Held:
    """The terms of rows that have these, or None: of one adapter alone its own, without a copy.

    Whatever is smaller than the form is filled up at its ends with what changes nothing.
    """
    if all(row is rows[0] for row in rows):
        return rows[0] or {}
    return {
        path: {
            name: stacked([None if row is None else row.get(path, {}).get(name) for row in rows], shape, name)
            for name, shape in shapes.items()
        }
        for path, shapes in form.items()
    }


def stacked(arrays: Sequence[Tensor | None], shape: tuple[int, ...], name: str) -> Tensor:
    """A term of all rows, ``(batch, *shape)``."""
    fill = NEUTRAL.get(name, 0.0)
    empty = next(array for array in arrays if array is not None).new_full((), fill).expand(shape)
    return torch.stack([empty if array is None else filled(array, shape, fill) for array in arrays])


def filled(array: Tensor, shape: Sequence[int], fill: float) -> Tensor:
    """An array of at least its own shape, filled up at the ends of its axes."""
    missing = [wanted - size for size, wanted in zip(array.shape, shape, strict=True)]
    if not any(missing):
        return array
    return F.pad(array, [side for count in reversed(missing) for side in (0, count)], value=fill)

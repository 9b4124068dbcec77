"""A suite's sections multiplied out: the name and the changes of every run that may be made."""

from __future__ import annotations

import itertools
import math
import unicodedata
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_peft.config import files
from mlx_peft.config.naming import label, labels, short
from mlx_peft.config.step import Step
from mlx_peft.config.tuning import Axes, Resources, Tuning
from mlx_peft.config.yaml_io import Document
from mlx_peft.core.bounds import LONGEST_PART
from mlx_peft.core.errors import UserError, shown
from mlx_peft.core.sections import Place

if TYPE_CHECKING:
    from mlx_peft.config.suite import RunSection, Suite

MAX_RUNS = 1000
MAX_VALUES = 2_000_000
"""The values in the file times the runs are at most so many: they are put together for each run."""


@dataclass(frozen=True)
class Change:
    """A value, the key it goes to, and where it stands in the file."""

    key: str
    value: Any
    where: dict[Place, str]

    def over(self, below: Document) -> Document:
        """A section takes the place of the one that was there; a plain value changes its key alone."""
        place = tuple(self.key.split("."))
        if isinstance(self.value, dict):
            below = _without(below, place)
        values: Any = self.value
        for name in reversed(place):
            values = {name: values}
        return files.merged(below, Document(values, {(*place, *inner): source for inner, source in self.where.items()}))


@dataclass(frozen=True)
class Outline:
    """A run before it is resolved."""

    name: str
    changes: tuple[Change, ...]


@dataclass(frozen=True)
class Sketch:
    """A candidate before it is resolved: see ``study.Candidate``."""

    values: Mapping[str, Any]
    trials: tuple[Outline, ...]
    finals: tuple[Outline, ...]

    @property
    def outlines(self) -> Iterator[Outline]:
        """Of all its runs; one that is a trial and a final run, once."""
        names = [final.name for final in self.finals]
        yield from (trial for trial in self.trials if trial.name not in names)
        yield from self.finals


@dataclass(frozen=True)
class Sketched:
    """An entry before it is resolved: see ``study.Entry``."""

    label: str
    values: Mapping[str, Any]
    sketches: tuple[Sketch, ...]
    steps: tuple[Step, ...]
    resources: Resources
    tuning: Tuning | None
    at: Callable[[Mapping[str, Any]], Sketch]

    @property
    def names(self) -> Iterator[str]:
        """Of its runs, and of what is made of them."""
        for sketch in self.sketches:
            yield from (outline.name for outline in sketch.outlines)
            yield from (f"{final.name}-{step.folder}" for final in sketch.finals for step in self.steps)


@dataclass(frozen=True)
class Point:
    """A place on axes: its value of each key, what they add to a name, and what they change."""

    values: Mapping[str, Any]
    parts: tuple[str, ...]
    changes: tuple[Change, ...]


def expanded(suite: Suite, document: Document, path: str) -> list[Sketched]:
    """The entries of a suite, in order. Raises UserError where two runs have one name, or there are too many."""
    _must_be_few(suite, document, path)
    found: list[Sketched] = []
    for index, run in enumerate(suite.runs or (None,)):
        found += _entries(suite, run, () if run is None else ("runs", index), document)
    _must_differ([name for entry in found for name in entry.names], path)
    return found


def _must_be_few(suite: Suite, document: Document, path: str) -> None:
    """Raises UserError where more runs are to be made than a study may have, or more may be than can be resolved."""
    made = possible = 0
    for run in suite.runs or (None,):
        axes = suite.axes if run is None or run.axes is None else run.axes
        tuning = suite.tune if run is None or run.tune is None else run.tune
        points, tried = math.prod(map(len, axes.values())), _trials(tuning)
        finals, trials = map(len, _seeds(suite, tuning))
        made += points * (tried * trials + finals)
        possible += points * (tried * (trials + finals) or finals)
    if made > MAX_RUNS:
        raise UserError(f"{path}: more than {MAX_RUNS} runs")
    if possible * len(document.where) > MAX_VALUES:
        raise UserError(f"{path}: {possible:,} runs of a file of {len(document.where):,} values: split it")


def _trials(tuning: Tuning | None) -> int:
    """How many candidates are tried."""
    if tuning is None or not tuning.keys:
        return 0
    return tuning.trials or math.prod(map(len, tuning.axes.values()))


def _seeds(suite: Suite, tuning: Tuning | None) -> tuple[Sequence[int | None], Sequence[int | None]]:
    """Of the final runs, and of the trials."""
    seeds: Sequence[int | None] = suite.seeds or (None,)
    return seeds, (tuning.seeds if tuning is not None else None) or seeds[:1]


def _entries(suite: Suite, run: RunSection | None, at: Place, document: Document) -> list[Sketched]:
    """The entries of one of a suite's runs: one at each point of its axes."""
    axes, axes_at = (suite.axes, ()) if run is None or run.axes is None else (run.axes, at)
    tuning, tuning_at = (suite.tune, ()) if run is None or run.tune is None else (run.tune, at)
    if tuning is not None and not tuning.keys:
        tuning = None
    steps = suite.then if run is None or run.then is None else run.then
    resources = suite.resources if run is None or run.resources is None else run.resources
    common = _changes(suite.set, ("set",), document) + (_changes(run.set, (*at, "set"), document) if run else [])
    keys = (*axes, *(tuning.keys if tuning else ()))
    found = []
    for point in points(axes, (*axes_at, "axes"), document, keys):
        parts = ([run.name] if run else []) + [*point.parts]
        sketch = _Sketching(
            suite, tuning, [*common, *point.changes], parts, document, (*tuning_at, "tune"), keys
        )  # fmt: skip
        found.append(
            Sketched("-".join(parts) or sketch.stem, point.values, sketch.all(), steps, resources, tuning, sketch.at)
        )
    return found


@dataclass(frozen=True)
class _Sketching:
    """Makes the candidates of an entry."""

    suite: Suite
    tuning: Tuning | None
    changes: list[Change]
    parts: list[str]
    document: Document
    place: Place
    """Where the tuning stands in the file."""
    keys: Collection[str]

    @property
    def stem(self) -> str:
        return Path(self.suite.base).stem

    def all(self) -> tuple[Sketch, ...]:
        """Those of a grid; the corners of a search; the one where nothing is chosen."""
        if self.tuning is None:
            return (self.sketch(Point({}, (), ())),)
        if self.tuning.search:
            return tuple(map(self.at, self.tuning.corners))
        grid = points(self.tuning.axes, (*self.place, "axes"), self.document, self.keys)
        return tuple(map(self.sketch, grid))

    def at(self, values: Mapping[str, Any]) -> Sketch:
        """That of values which a search proposes."""
        changes = [
            Change(key, value, {(): self.document.where.get((*self.place, "search", key, "low"), "search")})
            for key, value in values.items()
        ]
        parts = tuple(f"{short(key, self.keys)}={label(value)}" for key, value in values.items())
        return self.sketch(Point(values, parts, tuple(changes)))

    def sketch(self, point: Point) -> Sketch:
        seeds, tried = _seeds(self.suite, self.tuning)
        several = len({*seeds, *tried}) > 1 if self.tuning else len(seeds) > 1

        def name(seed: int | None) -> str:
            return "-".join([*self.parts, *point.parts, *([f"seed={seed}"] if several else [])]) or self.stem

        def seeded(seed: int | None) -> list[Change]:
            where = _below(self.document, ("seeds",)) or {(): "seeds"}
            return [] if seed is None else [Change("seed", seed, where)]

        finals = tuple(Outline(name(seed), (*self.changes, *point.changes, *seeded(seed))) for seed in seeds)
        if self.tuning is None:
            return Sketch(point.values, (), finals)
        alone = _changes(self.tuning.set, (*self.place, "set"), self.document)
        trials = tuple(
            Outline(
                name(seed) if not alone and seed in seeds else f"{name(seed)}-tune",
                (*self.changes, *alone, *point.changes, *seeded(seed)),
            )
            for seed in tried
        )
        return Sketch(point.values, trials, finals)


def points(axes: Axes, place: Place, document: Document, keys: Collection[str]) -> list[Point]:
    """Every combination of the values of axes that stand at a place, in the order of the file; ``keys`` are those that
    a name may have to tell apart."""
    each = [
        [(key, value, called, (*place, key, number)) for number, (value, called) in enumerate(_called(values))]
        for key, values in axes.items()
    ]
    found = []
    for point in itertools.product(*each):
        ordered = sorted(point, key=lambda item: item[0].count("."))
        changes = [Change(key, value, _below(document, there)) for key, value, _, there in ordered]
        parts = tuple(f"{short(key, keys)}={called}" for key, _, called, _ in point)
        found.append(Point({key: value for key, value, _, _ in point}, parts, tuple(changes)))
    return found


def _called(values: Sequence[Any]) -> Iterator[tuple[Any, str]]:
    return zip(values, labels(values), strict=True)


def _must_differ(every: Sequence[str], path: str) -> None:
    """Raises UserError where two names are one folder's, or a folder cannot have such a name."""
    names: dict[str, str] = {}
    for name in every:
        alike = unicodedata.normalize(
            "NFC", name
        ).casefold()  # a Mac's folders tell neither a from A nor é from e and ´
        other = names.get(alike)
        if other is not None:
            named = "" if other == name else f" (or {other!r})"
            raise UserError(f"{path}: two runs have the name {name!r}{named}; a name is a folder's: change one of them")
        if len(name.encode()) > LONGEST_PART:
            raise UserError(f"{path}: the run {shown(name)} has too long a name for a folder: give its runs names")
        names[alike] = name


def _changes(changes: Mapping[str, Any], place: Place, document: Document) -> list[Change]:
    """In the order of the file, but a section before the keys inside it."""
    ordered = sorted(changes, key=lambda key: key.count("."))
    return [Change(key, changes[key], _below(document, (*place, key))) for key in ordered]


def _below(document: Document, place: Place) -> dict[Place, str]:
    """Where the values below a place stand, by the rest of their way."""
    return {key[len(place) :]: source for key, source in document.where.items() if key[: len(place)] == place}


def _without(document: Document, place: Place) -> Document:
    """All but the value at a place."""

    def cut(values: dict[str, Any], keys: Place) -> dict[str, Any]:
        key, *rest = keys
        if not rest:
            return {name: value for name, value in values.items() if name != key}
        inner = values.get(str(key))
        return {**values, str(key): cut(inner, tuple(rest))} if isinstance(inner, dict) else values

    where = {key: source for key, source in document.where.items() if key[: len(place)] != place}
    return Document(cut(document.values, place), where)

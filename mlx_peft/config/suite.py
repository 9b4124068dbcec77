"""A suite: many runs in one file, equal but for what the file says that differs."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, ValidationError

from mlx_peft.config import files, problems, recipes, yaml_io
from mlx_peft.config.naming import labels, short
from mlx_peft.config.schema import Experiment
from mlx_peft.config.section import Section
from mlx_peft.config.step import FolderName, Step
from mlx_peft.config.yaml_io import Document
from mlx_peft.core.bounds import LONGEST_PART, LONGEST_PATH
from mlx_peft.core.errors import UserError, shown
from mlx_peft.core.problems import in_lines
from mlx_peft.core.sections import Place

MAX_RUNS = 1000
MAX_KEYS = 150
"""A set, or the axes, may have so many keys: an experiment has about as many in all."""

MAX_VALUES = 2_000_000
"""The values in the file times the runs are at most so many: they are put together for each run."""

KEY = re.compile(r"\w+(\.\w+)*")


def _keys(changes: dict[str, Any]) -> dict[str, Any]:
    if len(changes) > MAX_KEYS:
        raise ValueError(f"has {len(changes):,} keys, at most {MAX_KEYS}: an experiment has no more")
    for key in changes:
        if not KEY.fullmatch(key) or key.count(".") >= yaml_io.MAX_DEPTH:
            raise ValueError(f"{shown(key)} is no key; write a section's name, or a path such as method.rank")
    return changes


def _each_has_values(axes: dict[str, tuple[Any, ...]]) -> dict[str, tuple[Any, ...]]:
    if empty := [key for key, values in axes.items() if not values]:
        raise ValueError(f"{empty[0]} should have at least one value")
    return axes


Changes = Annotated[dict[str, Any], AfterValidator(_keys)]
"""``train.epochs: 5`` changes one key; ``method: {name: linear}`` takes the place of the whole section."""

Axes = Annotated[dict[str, tuple[Any, ...]], AfterValidator(_keys), AfterValidator(_each_has_values)]
"""Keys, each with the values it takes in turn: every combination is a run."""


class RunSection(Section):
    """One entry of a suite: a run, or a grid of them."""

    name: FolderName = Field(description="of the run, and of its folder")
    set: Changes = Field(default_factory=dict, description="what this run changes, over the suite's own set")
    axes: Axes | None = Field(None, description="in place of the suite's axes; {}: none")
    then: tuple[Step, ...] = Field((), description="what is made of the run when it is finished")


class Suite(Section):
    """Each run is the base, then ``set``, the run's own ``set``, its point on the axes, its seed, the command line."""

    base: str = Field(max_length=LONGEST_PATH, description="a recipe, or an experiment file relative to this one")
    set: Changes = Field(default_factory=dict, description="changes for every run: a section's name or a dotted key")
    seeds: Annotated[tuple[Annotated[int, Field(ge=0, lt=2**31)], ...], Field(min_length=1)] | None = Field(
        None, description="each run is made once for each; null: the base's own"
    )
    axes: Axes = Field(default_factory=dict, description="a grid: each key with its values")
    runs: tuple[RunSection, ...] = Field((), description="runs by name; none: the base itself, on the axes")


@dataclass(frozen=True)
class Planned:
    """A run of a suite, resolved: its name is unique in the suite and fit for a folder.

    Attributes:
        step: what is made of the run called ``of``, whose experiment this is, in place of a run; None: a run.
    """

    name: str
    experiment: Experiment
    step: Step | None = None
    of: str | None = None


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


def load(
    path: Path,
    overrides: Iterable[str] = (),
    *,
    defaults: Mapping[str, Any] | None = None,
    checks: Mapping[str, Callable[[str], object]] | None = None,
) -> list[Planned]:
    """The runs of a suite's file, in its order; the arguments are those of ``files.load``.

    Raises UserError with all that is wrong, with the suite itself or else with any of its runs, one line each.
    """
    document = yaml_io.parse(files.text(path), str(path))
    try:
        suite = Suite.model_validate_json(json.dumps(document.values), strict=True)
    except ValidationError as error:
        found = problems.explain(error, Suite)
        raise UserError(f"{path} is not a valid suite:\n{in_lines(found, document.where)}") from None
    start = files.merged(
        Document(dict(defaults or {}), {}), files.compose(recipes.locate(suite.base, beside=path.parent))
    )
    above = files.override(overrides)
    planned: list[Planned] = []
    wrong: dict[str, list[str]] = {}
    names = []
    for name, changes, steps in _expanded(suite, document, str(path)):
        names.append(name)
        try:
            whole = files.merged(reduce(lambda below, change: change.over(below), changes, start), above)
            run = Planned(name, files.resolve(whole, checks))
            planned += [run, *(Planned(f"{name}-{step.folder}", run.experiment, step, name) for step in steps)]
        except UserError as error:
            wrong[name] = [line.removeprefix("  ") for line in str(error).splitlines()]
    if wrong:
        raise UserError(f"{path} is not a valid suite:\n{by_run(wrong, len(names))}")
    return planned


def by_run(wrong: Mapping[str, Sequence[str]], runs: int) -> str:
    """What is wrong with several of so many runs: each message once, under the names of the runs that it is true of."""
    found: dict[str, list[str]] = {}
    for name, messages in wrong.items():
        for message in messages:
            found.setdefault(message, []).append(name)
    return "\n".join(
        f"  {'every run' if 1 < len(names) == runs else ', '.join(names)}: {message}"
        for message, names in found.items()
    )


def _expanded(suite: Suite, document: Document, path: str) -> list[tuple[str, list[Change], tuple[Step, ...]]]:
    """Every run's name, changes and steps, in order.

    Raises UserError where two have one name, or there are too many.
    """
    seeds: tuple[int | None, ...] = suite.seeds or (None,)
    found: list[tuple[str, list[Change], tuple[Step, ...]]] = []
    for index, run in enumerate(suite.runs or (None,)):
        at: Place = () if run is None else ("runs", index)
        axes, axes_at = (suite.axes, ()) if run is None or run.axes is None else (run.axes, at)
        common = _changes(suite.set, ("set",), document) + (_changes(run.set, (*at, "set"), document) if run else [])
        if len(found) + math.prod(map(len, axes.values())) * len(seeds) > MAX_RUNS:
            raise UserError(f"{path}: more than {MAX_RUNS} runs")
        points = [
            [
                (key, *point, (*axes_at, "axes", key, i))
                for i, point in enumerate(zip(values, labels(values), strict=True))
            ]
            for key, values in axes.items()
        ]
        for point, seed in itertools.product(itertools.product(*points), seeds):
            parts = [run.name] if run else []
            parts += [f"{short(key, axes)}={called}" for key, _, called, _ in point]
            parts += [f"seed={seed}"] if len(seeds) > 1 else []
            ordered = sorted(point, key=lambda item: item[0].count("."))
            changes = [Change(key, value, _below(document, place)) for key, value, _, place in ordered]
            changes += [] if seed is None else [Change("seed", seed, _below(document, ("seeds",)))]
            found.append(("-".join(parts) or Path(suite.base).stem, common + changes, run.then if run else ()))
    if len(found) * len(document.where) > MAX_VALUES:
        raise UserError(f"{path}: {len(found):,} runs of a file of {len(document.where):,} values: split it")
    names: dict[str, str] = {}
    for name in (name for run, _, steps in found for name in (run, *(f"{run}-{step.folder}" for step in steps))):
        other = names.get(name.casefold())  # a Mac's folders do not tell a from A
        if other is not None:
            alike = "" if other == name else f" (or {other!r})"
            raise UserError(f"{path}: two runs have the name {name!r}{alike}; a name is a folder's: change one of them")
        if len(name.encode()) > LONGEST_PART:
            raise UserError(f"{path}: the run {shown(name)} has too long a name for a folder: give its runs names")
        names[name.casefold()] = name
    return found


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

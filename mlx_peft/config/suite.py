"""A suite: many runs in one file, equal but for what the file says that differs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from mlx_peft.config import files, problems, recipes, yaml_io
from mlx_peft.config.expansion import Outline, Sketch, Sketched, expanded
from mlx_peft.config.schema import Experiment
from mlx_peft.config.section import Section
from mlx_peft.config.step import FolderName, Step
from mlx_peft.config.study import Candidate, Entry, Planned, Study
from mlx_peft.config.tuning import Axes, Changes, Resources, Seeds, Tuning
from mlx_peft.config.yaml_io import Document
from mlx_peft.core.bounds import LONGEST_PATH
from mlx_peft.core.errors import UserError
from mlx_peft.core.problems import in_lines


class RunSection(Section):
    """One entry of a suite: a run, or a grid of them."""

    name: FolderName = Field(description="of the run, and of its folder")
    set: Changes = Field(default_factory=dict, description="what this run changes, over the suite's own set")
    axes: Axes | None = Field(None, description="in place of the suite's axes; {}: none")
    tune: Tuning | None = Field(None, description="in place of the suite's tune; {}: nothing is chosen")
    then: tuple[Step, ...] | None = Field(None, description="in place of the suite's then; []: nothing")
    resources: Resources | None = Field(None, description="in place of the suite's")


class Suite(Section):
    """Each run is the base, then ``set``, the run's own ``set``, its point on the axes, what ``tune`` chose, its seed,
    the command line."""

    base: str = Field(max_length=LONGEST_PATH, description="a recipe, or an experiment file relative to this one")
    set: Changes = Field(default_factory=dict, description="changes for every run: a section's name or a dotted key")
    seeds: Seeds | None = Field(None, description="each run is made once for each; null: the base's own")
    axes: Axes = Field(default_factory=dict, description="a grid: each key with its values")
    tune: Tuning | None = Field(None, description="what is chosen on validation images, for each run by itself")
    runs: tuple[RunSection, ...] = Field((), description="runs by name; none: the base itself, on the axes")
    then: tuple[Step, ...] = Field((), description="what is made of each run when it is finished")
    resources: Resources = Field(default_factory=Resources)


def load(
    path: Path,
    overrides: Iterable[str] = (),
    *,
    defaults: Mapping[str, Any] | None = None,
    checks: Mapping[str, Callable[[str], object]] | None = None,
) -> Study:
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
    made = _Resolving(start, files.override(overrides), checks)
    sketched = expanded(suite, document, str(path))
    wrong: dict[str, list[str]] = {}
    names = []
    for outline in (o for one in sketched for sketch in one.sketches for o in sketch.outlines):
        names.append(outline.name)
        try:
            made.experiment(outline)
        except UserError as error:
            wrong[outline.name] = [line.removeprefix("  ") for line in str(error).splitlines()]
    if wrong:
        raise UserError(f"{path} is not a valid suite:\n{by_run(wrong, len(names))}")
    return Study(tuple(map(made.entry, sketched)))


@dataclass
class _Resolving:
    """Makes experiments of outlines, each once."""

    start: Document
    above: Document
    checks: Mapping[str, Callable[[str], object]] | None
    found: dict[str, Experiment] = field(default_factory=dict)
    """By the names of the runs."""

    def experiment(self, outline: Outline) -> Experiment:
        """Raises UserError with all that is wrong."""
        if outline.name not in self.found:
            below = reduce(lambda below, change: change.over(below), outline.changes, self.start)
            self.found[outline.name] = files.resolve(files.merged(below, self.above), self.checks)
        return self.found[outline.name]

    def candidate(self, sketch: Sketch, steps: Sequence[Step]) -> Candidate:
        trials = tuple(Planned(outline.name, self.experiment(outline), trial=True) for outline in sketch.trials)
        finals: list[Planned] = []
        for outline in sketch.finals:
            run = Planned(outline.name, self.experiment(outline))
            finals += [run, *(Planned(f"{run.name}-{step.folder}", run.experiment, step, run.name) for step in steps)]
        return Candidate(sketch.values, trials, tuple(finals))

    def entry(self, one: Sketched) -> Entry:
        def at(values: Mapping[str, Any]) -> Candidate:
            return self.candidate(one.at(values), one.steps)

        candidates = tuple(self.candidate(sketch, one.steps) for sketch in one.sketches)
        return Entry(one.label, one.values, candidates, one.resources, one.tuning, at)


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
